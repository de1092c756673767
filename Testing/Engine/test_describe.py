"""What is told of a base model before anything is trained."""

from __future__ import annotations

from tcurlora.cli.describe_base import describe_base, describe_base_in_words


def test_numbers_are_those_of_an_adapter_for_the_same_structures() -> None:
    described = describe_base("hippocampus_t1_unetr")
    # The cores of all kernels but the head's, and the head: 8 channels to 3, with a bias each.
    assert described["trained"]["compact"]["total"] == 7868 + 3 * 8 + 3
    assert described["trained"]["full"]["total"] == described["numbers"] == 6_970_555
    words = describe_base_in_words(described)
    assert "compact: 7,895" in words and "decoder5.conv_block" in words
