"""Images and what is known of them: records, decoding, transforms, samplers, loading."""
