"""The way from an upload's stored picture to its answer's picture, for places that metadata names."""

from dataclasses import dataclass

Size = tuple[int, int]

# EXIF orientations that exchange width and height, and those that mirror the picture.
SIDE_SWAPPING = range(5, 9)
MIRRORED = (2, 4, 5, 7)
# Two pictures have the same proportions when these differ by no more than this share.
PROPORTIONS = 0.02


@dataclass(frozen=True, slots=True)
class Transform:
    """The turn and the scaling between a stored picture and the picture of an answer.

    width, height: sides of the answer, pixels. orientation: EXIF's number of the turn, 1 to 8; 0 when it is unknown,
    for example because the file also crops its picture. upright: width and height after the turn and before the
    scaling; by default the answer's.
    """

    width: int
    height: int
    orientation: int = 1
    upright: Size | None = None

    @property
    def full(self) -> Size:
        """Width and height after the turn and before the scaling."""
        return self.upright or (self.width, self.height)

    @property
    def stored(self) -> Size:
        """Width and height before the turn and the scaling."""
        width, height = self.full
        return (height, width) if self.swaps_sides else (width, height)

    @property
    def swaps_sides(self) -> bool:
        """Tell whether the turn exchanges width and height."""
        return self.orientation in SIDE_SWAPPING

    @property
    def is_mirrored(self) -> bool:
        """Tell whether left and right are exchanged."""
        return self.orientation in MIRRORED

    @property
    def is_reoriented(self) -> bool:
        """Tell whether a place has other normalised coordinates in the answer."""
        return self.orientation != 1

    @property
    def is_scaled(self) -> bool:
        """Tell whether the answer has other sides than the upright picture."""
        return self.full != (self.width, self.height)

    @property
    def is_identity(self) -> bool:
        """Tell whether every pixel is where it was."""
        return not self.is_reoriented and not self.is_scaled

    def map_point(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point of the stored picture is in the answer, both as shares of width and height.

        Raises ValueError when the turn is unknown.
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
        raise ValueError("an unknown turn")

    def map_size(self, width: float, height: float) -> tuple[float, float]:
        """Return the width and height of an area in the answer, as shares of the picture's."""
        return (height, width) if self.swaps_sides else (width, height)


def has_proportions(size: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether two sizes, width and height each, have the same proportions."""
    across, down = size[0] * other[1], size[1] * other[0]
    return abs(across - down) <= PROPORTIONS * max(across, down)


def compose(first: int, second: int) -> int:
    """Return the orientation that does what two do one after the other."""
    corners = [Transform(1, 1, second).map_point(*Transform(1, 1, first).map_point(x, y)) for x, y in ((0, 0), (1, 0))]
    return next(n for n in range(1, 9) if [Transform(1, 1, n).map_point(x, y) for x, y in ((0, 0), (1, 0))] == corners)
