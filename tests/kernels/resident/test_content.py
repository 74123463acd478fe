"""The index of resident contents, where representatives leave or join."""

from __future__ import annotations

from ratedist.kernels.resident.content import Content, ContentIndex


def two_twins() -> ContentIndex:
    index = ContentIndex()
    index.add(0, b"same", Content(request=0, representative=5))
    index.add(0, b"same", Content(request=0, representative=6))
    index.add(0, b"near", Content(request=1, representative=6, kept=False))
    return index


def representative(index: ContentIndex, digest: bytes) -> int | None:
    content = index.find(0, digest)
    return None if content is None else content.representative


def test_a_twin_stands_in_when_the_first_has_left() -> None:
    index = two_twins()
    assert index.find(1, b"same") is None
    index.forget(5)
    assert representative(index, b"same") == 6
    index.forget(6)
    assert len(index) == 0


def test_what_a_twin_absorbed_follows_when_it_joins() -> None:
    index = two_twins()
    content = index.find(0, b"same")
    assert content is not None
    assert index.join(content) == [6]
    index.forget(6)
    assert (representative(index, b"same"), representative(index, b"near")) == (5, 5)
    index.forget(5)
    assert len(index) == 0


def test_a_displaced_content_is_forgotten_by_its_representative() -> None:
    index = two_twins()
    index.displace(0, b"near")
    assert representative(index, b"near") is None
    # Another block stands for it now, and leaves; then the twin that had absorbed it joins.
    index.add(0, b"near", Content(request=2, representative=7))
    index.forget(7)
    content = index.find(0, b"same")
    assert content is not None
    assert index.join(content) == [6]
    assert len(index) == 1
