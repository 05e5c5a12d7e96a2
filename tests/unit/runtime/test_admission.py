import pytest

from service.errors import Overloaded
from service.runtime.admission import Slots, UploadReservation


def test_slots_are_refused_when_too_few_would_be_left() -> None:
    slots = Slots("photos", 3)
    slots.acquire(2)
    with pytest.raises(Overloaded, match="the limit of 3 photos is reached"):
        slots.acquire(2)
    with pytest.raises(Overloaded):
        slots.acquire(leave=1)
    slots.acquire()
    slots.release(3)
    assert slots.in_use == 0


def test_a_reservation_releases_what_it_holds() -> None:
    uploads, held = Slots("uploads", 1), Slots("bytes", 10)
    with UploadReservation(uploads, held) as reservation:
        reservation.grow(8)
        reservation.shrink(3)
        assert (uploads.in_use, held.in_use) == (1, 5)
        reservation.complete()
        assert (uploads.in_use, held.in_use) == (0, 5)
        with pytest.raises(Overloaded):
            reservation.grow(6)
    assert (uploads.in_use, held.in_use) == (0, 0)
