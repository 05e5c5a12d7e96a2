"""Tests of writing AVIF and HEIC files: the parser finds what was written."""

from service.formats import heif_boxes
from service.formats.heif_writer import NewItem, Property, write


def test_the_parser_finds_the_written_items() -> None:
    size = Property(b"ispe", bytes(4) + b"\0\0\0\x40\0\0\0\x20", False)
    turn = Property(b"irot", b"\1", True)
    content = memoryview(b"coded pixels")
    items = [
        NewItem(b"grid", memoryview(b"a grid"), [size, turn], [(b"dimg", [1, 2])]),
        NewItem(b"hvc1", content, [size]),
        NewItem(b"hvc1", content, [size]),
        NewItem(b"iden", None, [], [(b"dimg", [1])]),
    ]
    data = write(items, (b"heic", b"mif1", b"heic"))
    assert data[4:20] == b"ftypheic\0\0\0\0mif1"
    found = heif_boxes.read(data)
    assert (found.primary, [item.kind for item in found.items.values()]) == (1, [b"grid", b"hvc1", b"hvc1", b"iden"])
    assert [item.is_hidden for item in found.items.values()] == [False, True, True, True]
    assert found.items[1].references == {b"dimg": [2, 3]}
    assert list(found.properties_of(found.items[1])) == [(b"ispe", size.content, False), (b"irot", b"\1", True)]
    ((start, end),) = found.items[2].spans or []
    assert data[start:end] == content
    assert found.items[2].spans == found.items[3].spans, "equal objects are written once"
    assert data.count(content) == 1
