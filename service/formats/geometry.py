"""The geometric transform from the stored picture of an upload to the output, for positions in metadata."""

from dataclasses import dataclass

Size = tuple[int, int]

# EXIF orientations that swap width and height, and those that mirror the picture.
SIDE_SWAPPING = range(5, 9)
MIRRORED = (2, 4, 5, 7)
# Two pictures have the same proportions if their aspect ratios differ by at most this share.
PROPORTIONS = 0.02


@dataclass(frozen=True, slots=True)
class Transform:
    """The orientation and the scaling between a stored picture and the output.

    width, height: sides of the output, pixels. orientation: the EXIF orientation, 1 to 8; 0 if it is unknown, for
    example because the file also crops its picture. upright: width and height of the upright picture before it is
    scaled; by default those of the output.
    """

    width: int
    height: int
    orientation: int = 1
    upright: Size | None = None

    @property
    def full(self) -> Size:
        """Width and height of the upright picture, before it is scaled."""
        return self.upright or (self.width, self.height)

    @property
    def stored(self) -> Size:
        """Width and height of the stored picture."""
        width, height = self.full
        return (height, width) if self.swaps_sides else (width, height)

    @property
    def swaps_sides(self) -> bool:
        """Return whether the orientation swaps width and height."""
        return self.orientation in SIDE_SWAPPING

    @property
    def is_mirrored(self) -> bool:
        """Return whether the orientation mirrors the picture."""
        return self.orientation in MIRRORED

    @property
    def is_reoriented(self) -> bool:
        """Return whether a position has other normalised coordinates in the output."""
        return self.orientation != 1

    @property
    def is_scaled(self) -> bool:
        """Return whether the output has another size than the upright picture."""
        return self.full != (self.width, self.height)

    @property
    def is_identity(self) -> bool:
        """Return whether every pixel keeps its position."""
        return not self.is_reoriented and not self.is_scaled

    def map_point(self, x: float, y: float) -> tuple[float, float]:
        """Return the position in the output of a point of the stored picture, both as shares of width and height.

        Raises ValueError if the orientation is unknown.
        """
        match self.orientation:
            case 1:
                return x, y
            case 2:
                return 1 - x, y
            case 3:
                return 1 - x, 1 - y
            case 4:
                return x, 1 - y
            case 5:
                return y, x
            case 6:
                return 1 - y, x
            case 7:
                return 1 - y, 1 - x
            case 8:
                return y, 1 - x
        raise ValueError("the orientation is unknown")

    def map_size(self, width: float, height: float) -> tuple[float, float]:
        """Return the width and height of an area in the output, as shares of the sides of the output."""
        return (height, width) if self.swaps_sides else (width, height)


def has_proportions(size: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether two sizes, width and height each, have the same proportions."""
    across, down = size[0] * other[1], size[1] * other[0]
    return abs(across - down) <= PROPORTIONS * max(across, down)


def compose(first: int, second: int) -> int:
    """Return the orientation that is equal to `first` followed by `second`."""
    corners = [Transform(1, 1, second).map_point(*Transform(1, 1, first).map_point(x, y)) for x, y in ((0, 0), (1, 0))]
    return next(n for n in range(1, 9) if [Transform(1, 1, n).map_point(x, y) for x, y in ((0, 0), (1, 0))] == corners)
