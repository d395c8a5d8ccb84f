"""The one stylesheet of the pages that Sightline writes: system fonts, light and dark, phone to desktop."""

STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#15181e;--quiet:#586172;--line:#e1e5eb;--accent:#2457d6;
--right:#0a7f4f;--wrong:#c02b36;--query:#2457d6;--bar:#a9c1f7;--shade:0 1px 2px #0f172a12,0 4px 16px #0f172a0a}
@media(prefers-color-scheme:dark){:root{--page:#0e1116;--card:#171b22;--ink:#e8ebf1;--quiet:#9aa5b6;--line:#2a313c;--accent:#8fb1ff;
--right:#3fc98c;--wrong:#ff7a80;--query:#8fb1ff;--bar:#33508f;--shade:none}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
header,main,nav div{max-width:1200px;margin:0 auto;padding:0 clamp(16px,4vw,32px)}
header{padding-top:clamp(24px,5vw,56px)}
.brand{margin:0;color:var(--accent);font-weight:650;font-size:.8rem;letter-spacing:.1em;text-transform:uppercase}
h1{margin:.15em 0 .1em;font-size:clamp(1.6rem,4.5vw,2.5rem);line-height:1.15;letter-spacing:-.02em;text-wrap:balance;overflow-wrap:anywhere}
h2{margin:0 0 .35em;font-size:1.3rem;letter-spacing:-.01em;scroll-margin-top:64px}
h3{margin:1.6em 0 .6em;font-size:1.02rem}
p{margin:.3em 0 1em;max-width:76ch;overflow-wrap:anywhere}
.subtitle{margin:0;color:var(--quiet);font-size:1.08rem}
.quiet,figcaption,small{color:var(--quiet)}
dl,dd,figure{margin:0}
.facts{display:flex;flex-wrap:wrap;gap:6px 28px;margin-top:18px;font-size:.9rem}
.facts dt{color:var(--quiet);font-size:.78rem}
.facts dd{font-weight:550;overflow-wrap:anywhere}
nav{position:sticky;top:0;z-index:1;margin-top:20px;border-bottom:1px solid var(--line);font-size:.88rem;
background:color-mix(in srgb,var(--page) 88%,transparent);backdrop-filter:blur(8px)}
nav div{display:flex;gap:20px;overflow-x:auto;padding-block:10px;scrollbar-width:none}
@media(min-width:900px){nav div{flex-wrap:wrap;row-gap:2px}}
nav a{color:var(--quiet);text-decoration:none;white-space:nowrap;padding:2px 0}
nav a:hover{color:var(--accent)}
a:focus-visible,summary:focus-visible,[tabindex]:focus-visible{outline:2px solid var(--accent);outline-offset:3px;border-radius:4px}
main{padding-block:24px 64px}
section{background:var(--card);border:1px solid var(--line);border-radius:16px;box-shadow:var(--shade);
padding:clamp(16px,3vw,28px);margin-bottom:20px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:12px;margin:12px 0 20px}
.card{border:1px solid var(--line);border-radius:12px;padding:12px 14px}
.card dt{color:var(--quiet);font-size:.82rem}
.card dd{font-size:1.65rem;font-weight:650;letter-spacing:-.02em;line-height:1.25;font-variant-numeric:tabular-nums}
.card small{display:block;font-size:.78rem;font-weight:400;letter-spacing:0}
.scroll{overflow-x:auto;margin:8px 0 16px}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:7px 18px 7px 0;text-align:left;border-bottom:1px solid var(--line);vertical-align:middle}
th{color:var(--quiet);font-weight:500;font-size:.8rem;white-space:nowrap}
tr:last-child td{border-bottom:0}
.number{text-align:right;white-space:nowrap}
td.bar{width:40%;min-width:120px}
td small{display:block}
.gauge{position:relative;display:block;height:10px;border-radius:5px;background:var(--line)}
.gauge b{position:absolute;inset:0 auto 0 0;border-radius:5px;background:var(--bar)}
.gauge i{position:absolute;top:-2px;height:14px;min-width:2px;border-radius:2px;background:var(--accent);opacity:.75}
.strip{display:grid;gap:10px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:8px 32px}
.strip{grid-template-columns:repeat(auto-fill,minmax(92px,1fr));align-content:start}
.answer{display:grid;grid-template-columns:148px 1fr;gap:20px;padding:16px 0;border-top:1px solid var(--line)}
.answer:first-of-type{border-top:0}
.answer .strip{grid-template-columns:repeat(auto-fill,minmax(74px,1fr))}
.answer p{margin:.7em 0 0;font-size:.82rem}
.found{grid-template-columns:240px 1fr}
.gallery{display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start}
.gallery figure{width:clamp(160px,calc(200px*var(--r)),340px)}
.panels{display:grid;grid-template-columns:repeat(var(--n),minmax(0,1fr));gap:14px;padding:10px 0;align-items:start}
.gallery .frame,.panels .frame,.found .lead .frame{aspect-ratio:var(--r)}
.gallery .frame img,.panels .frame img,.found .lead .frame img{object-fit:contain}
.zoom{display:block;width:100%;height:100%;cursor:zoom-in}
.zoom input{position:absolute;opacity:0}
.zoom input:focus-visible+img{outline:3px solid var(--accent);outline-offset:-3px}
.zoom input:checked+img,.panels .zoom input:checked+img{position:fixed;inset:0;z-index:99;width:100vw;height:100dvh;padding:2vmin;
border-radius:0;object-fit:contain;background:#000d;cursor:zoom-out}
figcaption a{color:inherit;text-decoration-color:var(--line);text-underline-offset:2px}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;list-style:none;padding:0;margin:4px 0 14px;font-size:.88rem}
.legend i{display:inline-block;width:14px;height:14px;border-radius:4px;margin-right:7px;vertical-align:-2px;border:1px solid var(--line)}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:12px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:8px;padding:8px;border:1px solid var(--line);border-radius:14px}
.pair figure{min-width:0}
.frame{position:relative;aspect-ratio:1;border-radius:10px;overflow:hidden;background:var(--line);border:3px solid transparent}
.frame img{display:block;width:100%;height:100%;object-fit:cover;border-radius:6px}
.right .frame{border-color:var(--right)}
.wrong .frame{border-color:var(--wrong);border-style:dashed}
.query .frame{border-color:var(--query)}
.mark{position:absolute;left:5px;top:5px;min-width:20px;padding:0 5px;border-radius:10px;background:var(--card);font-size:.75rem;
font-weight:700;line-height:20px;text-align:center}
.right .mark{color:var(--right)}.wrong .mark{color:var(--wrong)}.query .mark{color:var(--query)}
.missing{display:grid;place-items:center;height:100%;font-size:.75rem;color:var(--quiet)}
.strip figcaption,.lead figcaption,.pair figcaption,.gallery figcaption,.panels figcaption{margin-top:4px;font-size:.78rem;line-height:1.3;overflow-wrap:anywhere}
.strip figcaption span,.lead figcaption span,.pair figcaption span,.gallery figcaption span,.panels figcaption span{display:block;overflow:hidden;
text-overflow:ellipsis;white-space:nowrap;color:var(--ink)}
.strip small,.lead small,.pair small,.gallery small,.panels small{font-size:.74rem;font-variant-numeric:tabular-nums}
.wide img{display:block;max-width:100%;height:auto;border-radius:10px}
.plot h3{margin-top:.8em}
.plot svg{display:block;width:100%;max-width:640px;height:auto}
.plot text{font-family:inherit}
.plot figcaption{font-size:.85rem;margin-top:4px}
pre{overflow-x:auto;background:var(--page);border:1px solid var(--line);border-radius:10px;padding:12px 14px;font-size:.85rem}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
details{margin:8px 0}summary{cursor:pointer;color:var(--accent)}
details ul{padding-left:1.2em;font-size:.88rem;overflow-wrap:anywhere}
@media(max-width:560px){.answer{grid-template-columns:1fr;gap:12px}
.panels{grid-template-columns:1fr}.gallery figure{width:calc(50% - 7px)}
.lead figure{display:grid;grid-template-columns:96px minmax(0,1fr);gap:14px}
.strip{gap:8px}.answer .strip{grid-template-columns:repeat(5,minmax(0,1fr))}
.answer .strip .mark{left:2px;top:2px;min-width:16px;padding:0 3px;line-height:16px}
th.bar,td.bar,td small{display:none}th,td{padding-right:12px}
.cards{grid-template-columns:1fr 1fr}section{border-radius:12px}}
@media print{nav{display:none}section{box-shadow:none;break-inside:avoid-page}}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
"""
