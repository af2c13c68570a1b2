"""Fixtures for real guests; the cloud and its judge come from the directory above."""
import guests
import pytest


@pytest.fixture
def running(cloud):
    """The seeded cloud with its guests up and writing; what an earlier test left in order is not made again."""
    if not guests.healthy():
        guests.back_to_seeded()
