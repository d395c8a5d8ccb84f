"""Re-rankers against dense float64 forms written from the papers, and their parts against cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.contracts import Ranking
from sightline.errors import UsageError
from sightline.search.neighbours import nearest
from sightline.search.rerank import parse, sparse
from sightline.search.rerank.base import reorder, with_tail
from sightline.search.rerank.diffusion import Diffusion, conjugate_gradients
from sightline.search.rerank.expansion import DatabaseAugmentation, QueryExpansion, expand
from sightline.search.rerank.kreciprocal import KReciprocal, averaged, expanded_sets, jaccard_distance
from sightline.search.rerank.superglobal import SuperGlobal

generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def vectors(num: int, seed: int, dim: int = 8) -> np.ndarray:
    generator = np.random.RandomState(seed)
    made = generator.randn(5, dim)[generator.randint(0, 5, num)] + generator.randn(num, dim)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def by_row(ranking: Ranking, num: int) -> np.ndarray:
    found = np.full((len(ranking.rows), num), np.nan)
    np.put_along_axis(found, ranking.rows, ranking.similarity, axis=1)
    return found


# --- the parts -------------------------------------------------------------------------------------------------------------------


def dense(rows: sparse.SparseRows, num_columns: int) -> np.ndarray:
    found = np.zeros((len(rows), num_columns))
    found[rows.owners(), rows.columns] = rows.values
    return found


def sparse_of(matrix: np.ndarray) -> sparse.SparseRows:
    rows, columns = np.nonzero(matrix)
    return sparse.SparseRows(sparse.offsets_of(np.bincount(rows, minlength=len(matrix))), columns, matrix[rows, columns].astype(np.float32))


@settings(max_examples=30, deadline=None)
@given(generators, st.integers(1, 12), st.integers(1, 12))
def test_sparse_rows_are_a_matrix(generator, num, num_columns):
    matrix = generator.integers(0, 3, (num, num_columns)).astype(np.float32)
    rows = sparse_of(matrix)
    np.testing.assert_array_equal(dense(rows, num_columns), matrix)
    np.testing.assert_array_equal(dense(rows.transposed(num_columns), num), matrix.T)
    wanted = generator.integers(0, num, 5)
    np.testing.assert_array_equal(rows.columns[rows.entries(wanted)], np.concatenate([np.flatnonzero(matrix[row]) for row in wanted]))


@settings(max_examples=30, deadline=None)
@given(generators, st.integers(1, 15), st.integers(1, 6))
def test_mutual_is_being_in_each_others_list(generator, num, k):
    near = np.stack([generator.permutation(np.arange(-1, num))[: min(k, num)] for _ in range(num)])
    expected = [[neighbour >= 0 and row in near[neighbour] for neighbour in near[row]] for row in range(num)]
    np.testing.assert_array_equal(sparse.mutual(near), expected)


@settings(max_examples=30, deadline=None)
@given(generators, st.integers(1, 12), st.integers(1, 4))
def test_averaged_is_the_mean_of_the_rows(generator, num, k2):
    matrix = generator.integers(0, 3, (num, num)).astype(np.float32)
    matrix[:, 0] = 1  # no row is empty
    near = np.stack([generator.permutation(num)[: min(k2, num)] for _ in range(num)])
    np.testing.assert_allclose(dense(averaged(sparse_of(matrix), near), num), matrix[near].mean(axis=1), atol=1e-6)


def test_jaccard_distance_by_hand():
    rows = sparse_of(np.array([[0.5, 0.5, 0, 0], [0.25, 0, 0.75, 0], [0, 0, 0, 1.0], [0.5, 0.5, 0, 0]]))
    found = jaccard_distance(rows, rows.transposed(4), 0)
    np.testing.assert_allclose(found, [0, 1 - 0.25 / 1.75, 1, 0], atol=1e-6)


def test_a_neighbours_set_is_taken_over_above_two_thirds():
    # 0, 1 and 2 choose each other; 3 and 4 choose each other and nobody else does.
    near = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 4, 0], [4, 3, 0]])
    found = expanded_sets(near, near[:, :2])
    assert [found.columns[found.offsets[row] : found.offsets[row + 1]].tolist() for row in range(5)] == [[0, 1, 2]] * 3 + [[3, 4]] * 2
    # 0 shares two of the three in the half set {2, 0, 4} of its neighbour 2: two thirds exactly, so 4 is not taken over.
    near = np.array([[0, 1, 2, 3], [1, 0, 2, 4], [2, 0, 4, 1], [3, 4, 0, 1], [4, 2, 3, 0]])
    found = expanded_sets(near, near[:, :3])
    assert found.columns[: found.offsets[1]].tolist() == [0, 1, 2, 3]


def test_reorder_keeps_ties_in_order_and_padding_last():
    ranking = Ranking(np.array([[5, 3, -1, 9]]), np.array([[0.9, 0.8, -np.inf, 0.1]], np.float32))
    found = reorder(ranking, np.array([[0.2, 0.7, np.nan, 0.7]], np.float32))
    assert found.rows.tolist() == [[3, 9, 5, -1]]
    np.testing.assert_array_equal(found.similarity, np.array([[0.7, 0.7, 0.2, -np.inf]], np.float32))


@settings(max_examples=50, deadline=None)
@given(generators, st.integers(1, 5))
def test_what_is_not_looked_at_stays_behind_in_its_order(generator, num_head):
    similarity = -np.sort(-generator.standard_normal((3, 12)).astype(np.float32), axis=1)
    ranking = Ranking(np.tile(np.arange(12), (3, 1)), similarity)
    found = reorder(ranking, with_tail(ranking, generator.standard_normal((3, num_head)).astype(np.float32)))
    np.testing.assert_array_equal(np.sort(found.rows[:, :num_head], axis=1), ranking.rows[:, :num_head])
    np.testing.assert_array_equal(found.rows[:, num_head:], ranking.rows[:, num_head:])
    assert (found.similarity[:, num_head - 1] > found.similarity[:, num_head]).all()


def test_what_is_not_looked_at_begins_just_below_the_least_of_its_own_querys_head():
    ranking = Ranking(np.tile(np.arange(4), (2, 1)), np.array([[0.9, 0.8, 0.5, 0.25], [0.7, 0.6, 0.5, 0.5]], np.float32))
    found = with_tail(ranking, np.array([[0.3, 0.1], [-2.0, 5.0]], np.float32))
    below = np.nextafter(np.array([0.1, -2.0], np.float32), np.float32(-np.inf))
    np.testing.assert_array_equal(found[:, 2], below)
    np.testing.assert_allclose(found[:, 3], below + np.array([-0.25, 0], np.float32), rtol=1e-6)
    assert found.dtype == np.float32


def test_conjugate_gradients_solve():
    matrix = np.array([[4.0, 1, 0], [1, 3, 1], [0, 1, 2]])
    found = conjugate_gradients(lambda f: matrix @ f, np.array([1.0, 2, 3]), 10, 1e-12)
    np.testing.assert_allclose(matrix @ found, [1, 2, 3], atol=1e-12)
    np.testing.assert_array_equal(conjugate_gradients(lambda f: matrix @ f, np.zeros(3), 10, 1e-12), np.zeros(3))


# --- the whole, against the papers -----------------------------------------------------------------------------------------------


def zhong(queries, gallery, self_rows, k1, k2, weight, power):
    """Equations 5 to 12 of arXiv 1701.08398 with sets and matrices, float64 [Q, G]."""
    both = gallery.astype(np.float64) if self_rows is not None else np.concatenate([gallery, queries]).astype(np.float64)
    own = self_rows if self_rows is not None else len(gallery) + np.arange(len(queries))
    distance = ((both[:, None] - both[None]) ** 2).sum(axis=2) ** power
    distance /= distance.max(axis=1, keepdims=True)
    order = np.argsort(distance, axis=1, kind="stable")
    num = len(both)

    def reciprocal(row, k):
        return {other for other in order[row, : k + 1] if row in order[other, : k + 1]}

    encoding = np.zeros((num, num))
    for row in range(num):
        base = reciprocal(row, k1)
        expanded = set(base)
        for other in base:
            half = reciprocal(other, round(k1 / 2))
            if len(half & base) * 3 > len(half) * 2:
                expanded |= half
        encoding[row, list(expanded)] = np.exp(-distance[row, list(expanded)])
        encoding[row] /= encoding[row].sum()
    encoding = encoding[order[:, :k2]].mean(axis=1)
    smaller = np.minimum(encoding[own][:, None], encoding[None]).sum(axis=2)
    larger = np.maximum(encoding[own][:, None], encoding[None]).sum(axis=2)
    return (1 - ((1 - weight) * (1 - smaller / larger) + weight * distance[own]))[:, : len(gallery)]


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize(
    ("k1", "k2", "weight", "power"), [(20, 6, 0.3, "d2"), (5, 1, 0.0, "d2"), (7, 3, 0.5, "d4"), (15, 10, 0.1, "d2"), (1, 2, 0.3, "d2")]
)
def test_k_reciprocal_is_the_papers(leave_one_out, k1, k2, weight, power):
    gallery, queries = vectors(70, 1), vectors(9, 2)
    self_rows = np.arange(3, 12) if leave_one_out else None
    queries = gallery[self_rows] if leave_one_out else queries
    ranking = nearest(queries, gallery, 70, self_rows)
    found = KReciprocal(k1=k1, k2=k2, weight=weight, power=power)(ranking, queries, gallery, self_rows)
    expected = zhong(queries, gallery, self_rows, k1, k2, weight, {"d2": 1, "d4": 2}[power])
    np.testing.assert_allclose(found.similarity, np.take_along_axis(expected, found.rows, axis=1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_expansion_is_the_weighted_mean(alpha):
    gallery, queries = vectors(30, 3), vectors(4, 4)
    ranking = nearest(queries, gallery, 30)
    found = by_row(QueryExpansion(num=5, alpha=alpha)(ranking, queries, gallery), 30)
    for query, vector in enumerate(queries.astype(np.float64)):
        total = vector + sum(max(vector @ gallery[row], 0) ** alpha * gallery[row] for row in ranking.rows[query, :5])
        np.testing.assert_allclose(found[query], gallery @ (total / np.linalg.norm(total)), atol=1e-6)


def test_augmentation_expands_the_gallery_and_leaves_the_query():
    gallery, queries = vectors(30, 5), vectors(4, 6)
    found = by_row(DatabaseAugmentation(num=3, alpha=2)(nearest(queries, gallery, 30), queries, gallery), 30)
    exact = gallery.astype(np.float64)
    for row, vector in enumerate(exact):
        near = [other for other in np.argsort(-(exact @ vector)) if other != row][:3]
        total = vector + sum(max(vector @ exact[other], 0) ** 2 * exact[other] for other in near)
        np.testing.assert_allclose(found[:, row], queries @ (total / np.linalg.norm(total)), atol=1e-6)


@pytest.mark.parametrize("truncate", [0, 12])
def test_diffusion_solves_the_papers_system(truncate):
    gallery, queries = vectors(40, 7), vectors(4, 8)
    ranking = nearest(queries, gallery, 40)
    settings_ = {"k": 7, "kq": 3, "alpha": 0.9, "gamma": 3.0}
    found = Diffusion(**settings_, truncate=truncate, iterations=200, tolerance=1e-12)(ranking, queries, gallery)
    exact = gallery.astype(np.float64)
    similarity = exact @ exact.T
    near = [set(np.argsort(-row)[:7]) for row in similarity]
    affinity = np.array([[i != j and j in near[i] and i in near[j] for j in range(40)] for i in range(40)])
    affinity = np.where(affinity, np.maximum(similarity, 0) ** 3, 0)
    for query, vector in enumerate(queries.astype(np.float64)):
        nodes = ranking.rows[query, : truncate or 40]
        graph = affinity[np.ix_(nodes, nodes)]
        scale = 1 / np.sqrt(np.maximum(graph.sum(axis=1), 1e-300))
        y = np.zeros(len(nodes))
        y[:3] = np.maximum(exact[nodes[:3]] @ vector, 0) ** 3
        f = np.linalg.solve(np.eye(len(nodes)) - 0.9 * np.where(graph > 0, scale[:, None] * graph * scale, 0), y)
        expected = dict(zip(nodes.tolist(), np.where(np.abs(f) < 1e-12, exact[nodes] @ vector - 1, f), strict=True))
        head = found.rows[query, : len(nodes)]
        np.testing.assert_allclose(found.similarity[query, : len(nodes)], [expected[row] for row in head], atol=1e-5)


def test_superglobal_is_the_mean_of_two_refined_similarities():
    gallery, queries = np.abs(vectors(40, 9)), np.abs(vectors(4, 10))  # positive, as after GeM: nothing is cut at 0
    gallery, queries = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (gallery, queries))
    ranking = nearest(queries, gallery, 40)
    found = by_row(SuperGlobal(top=15, num=4, beta=0.2)(ranking, queries, gallery), 40)
    for query, vector in enumerate(queries.astype(np.float64)):
        top = gallery[ranking.rows[query, :15]].astype(np.float64)
        refined = []
        for place, candidate in enumerate(top):
            near = [other for other in np.argsort(-(top @ candidate)) if other != place][:4]
            weight = [1, *(0.2 * (candidate @ top[other]) for other in near)]
            refined.append(np.average([candidate, *top[near]], axis=0, weights=weight))
        refined = np.array(refined)
        first = refined @ vector
        expanded = refined[np.argsort(-first)[:5]].max(axis=0)
        np.testing.assert_allclose(found[query, ranking.rows[query, :15]], (first + refined @ expanded) / 2, atol=1e-6)


def test_superglobal_cuts_the_weight_of_neighbours_at_an_obtuse_angle():
    # As its docstring says it departs. Candidates at 30 and 150 degrees, a query at 60: their cosine is -0.5, so neither moves.
    at = {degrees: [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))] for degrees in (30, 60, 150)}
    gallery, queries = np.array([at[30], at[150]], np.float32), np.array([at[60]], np.float32)
    found = SuperGlobal(top=2, num=1, beta=0.5)(nearest(queries, gallery, 2), queries, gallery)
    expanded = gallery.max(axis=0)
    np.testing.assert_allclose(by_row(found, 2)[0], (gallery @ queries[0] + gallery @ expanded) / 2, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_a_neighbour_at_an_obtuse_angle_weighs_nothing_in_an_expansion(alpha):
    gallery, queries = np.array([[-0.6, 0.8], [-1, 0]], np.float32), np.array([[1, 0]], np.float32)
    np.testing.assert_allclose(expand(queries, np.array([[0, 1]]), gallery, alpha), queries, atol=1e-7)
    # And one at an acute angle by its cosine to the power alpha.
    wanted = np.array([1, 0]) + 0.6**alpha * np.array([0.6, 0.8])
    found = expand(queries, np.array([[0, 1]]), np.array([[0.6, 0.8], [-1, 0]], np.float32), alpha)
    np.testing.assert_allclose(found[0], wanted / np.linalg.norm(wanted), atol=1e-6)


def test_in_a_chain_what_follows_works_with_the_changed_vectors():
    gallery, queries = vectors(40, 11), vectors(4, 12)
    ranking = nearest(queries, gallery, 40)
    expanded, _ = QueryExpansion(num=3).refine(ranking, queries, gallery, None, "cpu")
    expected = KReciprocal(k1=6)(ranking, expanded, gallery)
    found = parse("query-expansion,num=3+k-reciprocal,k1=6")(ranking, queries, gallery)
    np.testing.assert_allclose(by_row(found, 40), by_row(expected, 40), atol=1e-6)
    assert np.abs(by_row(found, 40) - by_row(KReciprocal(k1=6)(ranking, queries, gallery), 40)).max() > 1e-3


# --- its text form ---------------------------------------------------------------------------------------------------------------


def test_parse_reads_names_and_settings():
    assert parse(" k-reciprocal , k1=9,weight=0.5") == KReciprocal(k1=9, weight=0.5)
    assert parse("k-reciprocal-transreid") == KReciprocal(k1=50, k2=15)
    assert parse("k-reciprocal-torchreid,k2=3") == KReciprocal(power="d4", k2=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k-reciprocl", "did you mean 'k-reciprocal'"),
        ("", "unknown reranker ''"),
        ("diffusion,gama=2", "'diffusion' has no setting 'gama'; did you mean 'gamma'"),
        ("k-reciprocal,k1=many", "k1 must be of type int"),
        ("k-reciprocal,k1", "a setting is key=value"),
        ("k-reciprocal,k1=0", "k1 and k2 must be 1 or more"),
        ("k-reciprocal,weight=2", "weight in 0..1"),
        ("k-reciprocal,power=d3", "power cannot be 'd3'"),
        ("query-expansion,num=-1", "cannot be negative"),
        ("database-augmentation,alpha=-1", "cannot be negative"),
        ("diffusion,alpha=1", "below 1"),
        ("diffusion,k=0", "must be 1 or more"),
        ("superglobal,top=-1", "cannot be negative"),
    ],
)
def test_parse_says_what_is_wrong(text, message):
    with pytest.raises(UsageError, match=message):
        parse(text)
