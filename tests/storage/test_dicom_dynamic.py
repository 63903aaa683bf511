"""Dynamic and gated DICOM series: one frame and sums of frames in SUV, against a decaying source of known activity."""

import datetime
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from dynamic import GRID, Correction, Made, change, long_frame, uniform, write_dynamic
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from storage.dicom import open_series
from storage.dicom_dynamic import open_frames
from storage.dicom_write import write_series
from storage.errors import InputError
from storage.frames import Wanted
from storage.source import HU, ArraySource

CORRECTIONS = get_args(Correction)
STARTS, DURATIONS = [0.0, 30.0, 90.0, 400.0, 1000.0], [30.0, 60.0, 300.0, 600.0, 1800.0]
LEVELS = [0.5, 1.0, 2.0, 3.0, 2.5]  # uptake that changes between the frames


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a test need not survive a power cut: a sync of each takes most of the time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def frames() -> list[Made]:
    return uniform(LEVELS, STARTS, DURATIONS)


def opened(folder: Path, frames: str = "", *pairs: str) -> list[NDArray[np.float32]]:
    found = open_frames(folder, Wanted(frames, pairs))
    for _, source in found:
        json.dumps(source.provenance)
    return [source.read(0, GRID.shape[0]) for _, source in found]


def refused(folder: Path, frames: str = "", *pairs: str) -> InputError:
    with pytest.raises(InputError) as error:
        opened(folder, frames, *pairs)
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("number", range(5))
def test_a_single_frame_has_its_own_suv(
    tmp_path: Path, frames: list[Made], correction: Correction, number: int
) -> None:
    folder = write_dynamic(tmp_path / "pt", frames, correction)
    np.testing.assert_allclose(opened(folder, str(number + 1))[0], frames[number].suv, rtol=2e-4)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("choice", ["all", "2-4", "1,3,5"])
def test_a_sum_is_the_one_long_frame(tmp_path: Path, frames: list[Made], correction: Correction, choice: str) -> None:
    used = {"all": frames, "2-4": frames[1:4], "1,3,5": frames[::2]}[choice]
    (got,) = opened(write_dynamic(tmp_path / "pt", frames, correction), choice)
    mean = got.astype(np.float64).sum() / long_frame(used).sum()
    assert mean == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(got, long_frame(used), rtol=2e-4)  # int16 of the frames


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_frames_of_constant_suv_sum_to_it(tmp_path: Path, correction: Correction) -> None:
    frames = uniform([2.0] * 4, [0, 60, 600, 4000], [60, 300, 1200, 3600])
    (got,) = opened(write_dynamic(tmp_path / "pt", frames, correction), "all")
    np.testing.assert_allclose(got, frames[0].suv, rtol=1e-4)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("dates", ["next day", "series date", "none"])
def test_midnight_between_frames(tmp_path: Path, frames: list[Made], correction: Correction, dates: str) -> None:
    def edit(number: int, z: int, ds: Dataset) -> None:
        if dates == "series date":
            ds.AcquisitionDate = ds.SeriesDate
        elif dates == "none":
            del ds.AcquisitionDate

    begins = datetime.datetime(2020, 1, 1, 23, 58)
    folder = write_dynamic(tmp_path / "pt", frames, correction, begins=begins, edit=edit)
    np.testing.assert_allclose(opened(folder, "4")[0], frames[3].suv, rtol=2e-4)
    np.testing.assert_allclose(opened(folder, "all")[0], long_frame(frames), rtol=2e-4)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_an_injection_during_the_series(tmp_path: Path, frames: list[Made], correction: Correction) -> None:
    """Dynamic scans begin before the injection: the dose that would have been there at the start is a little more."""
    folder = write_dynamic(tmp_path / "pt", frames, correction, uptake_s=-25.0)
    np.testing.assert_allclose(opened(folder, "4")[0], frames[3].suv, rtol=2e-4)
    for file in folder.iterdir():
        change(
            file, lambda ds: delattr(ds.RadiopharmaceuticalInformationSequence[0], "RadiopharmaceuticalStartDateTime")
        )
    np.testing.assert_allclose(opened(folder, "all")[0], long_frame(frames), rtol=2e-4)
    late = write_dynamic(tmp_path / "late", frames, "START", uptake_s=-3000.0)  # after the last frame began
    assert refused(late, "4").code == "PET_TIME_ORDER"


def test_the_reference_is_that_of_the_whole_series(tmp_path: Path, frames: list[Made]) -> None:
    """Without a usable series time the earliest acquisition counts, also when its frame is not chosen."""

    def later(number: int, z: int, ds: Dataset) -> None:
        ds.SeriesTime = "140000"
        del ds.FrameReferenceTime

    folder = write_dynamic(tmp_path / "pt", frames, edit=later)
    np.testing.assert_allclose(opened(folder, "5")[0], frames[4].suv, rtol=2e-4)


def test_a_pair_holds_every_frame_once(tmp_path: Path, frames: list[Made]) -> None:
    full, low = open_frames(write_dynamic(tmp_path / "pt", frames), Wanted(pairs=("2",)))
    rest = [frames[0], *frames[2:]]
    np.testing.assert_allclose(full[1].read(0, 5), long_frame(rest), rtol=2e-4)
    np.testing.assert_allclose(low[1].read(0, 5), frames[1].suv, rtol=2e-4)
    assert low[0].dose is not None
    assert low[0].dose.drf == pytest.approx(sum(f.counts for f in rest) / frames[1].counts, rel=1e-5)
    assert full[1].provenance["frames"] == {
        "kind": "frames",
        "of": 5,
        "used": [1, 3, 4, 5],
        "durations_s": [30.0, 300.0, 600.0, 1800.0],
        "starts_s": [0.0, 90.0, 400.0, 1000.0],
        "weights": "counts: integral of exp(-l t) over the frame",
    }
    told = json.dumps([full[1].provenance, low[1].provenance])
    assert not re.search(r"2020|120[0-9]{3}", told)


def test_slabs_are_parts_of_the_whole(tmp_path: Path, frames: list[Made]) -> None:
    ((_, source),) = open_frames(write_dynamic(tmp_path / "pt", frames), Wanted("all"))
    assert np.array_equal(source.read(1, 4), source.read(0, 5)[1:4])
    assert source.read(0, 5).dtype == np.float32


# -- which slice is of which frame ------------------------------------------------------------------------------------

NO_INDEX = ("ImageIndex", "TemporalPositionIdentifier")


def _drop(*names: str) -> Callable[[int, int, Dataset], None]:
    def edit(number: int, z: int, ds: Dataset) -> None:
        for name in names:
            ds.pop(name, None)

    return edit


def _backwards(number: int, z: int, ds: Dataset) -> None:
    """Odd frames are numbered from the feet up."""
    z = GRID.shape[0] - 1 - z if number % 2 else z
    ds.InstanceNumber = ds.ImageIndex = number * GRID.shape[0] + z + 1


def _again(number: int, z: int, ds: Dataset) -> None:
    """The slices of each frame are counted from 1."""
    ds.InstanceNumber = ds.ImageIndex = z + 1


def _interleaved(number: int, z: int, ds: Dataset) -> None:
    ds.InstanceNumber = ds.ImageIndex = z * len(LEVELS) + number + 1


def _positions(number: int, z: int, ds: Dataset) -> None:
    ds.TemporalPositionIdentifier = number + 1
    del ds.ImageIndex


def _one_time(number: int, z: int, ds: Dataset) -> None:
    """FrameReferenceTime alone says when the frames began."""
    ds.AcquisitionTime = ds.SeriesTime
    ds.AcquisitionDate = ds.SeriesDate
    ds.InstanceNumber = ds.ImageIndex = z + 1


def _beds(number: int, z: int, ds: Dataset) -> None:
    """Two beds, the second a second later: no acquisition time is that of a whole frame."""
    _again(number, z, ds)
    if z > 2:
        ds.AcquisitionTime = f"{float(ds.AcquisitionTime) + 1:013.6f}"


@pytest.mark.parametrize("correction", ["START", "NONE"])
@pytest.mark.parametrize(
    "edit",
    [_drop(*NO_INDEX), _drop("InstanceNumber"), _backwards, _again, _interleaved, _positions, _one_time, _beds],
    ids=["times", "no number", "backwards", "again", "interleaved", "positions", "reference", "beds"],
)
def test_frames_are_told_apart(
    tmp_path: Path, frames: list[Made], correction: Correction, edit: Callable[[int, int, Dataset], None]
) -> None:
    folder = write_dynamic(tmp_path / "pt", frames, correction, edit=edit)
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"x{i * 7 % 25:02d}")  # shuffled, without a suffix
    for number, frame in enumerate(frames):
        np.testing.assert_allclose(opened(folder, str(number + 1))[0], frame.suv, rtol=4e-4)
    np.testing.assert_allclose(opened(folder, "all")[0], long_frame(frames), rtol=4e-4)
    assert "5 frames of 30, 60, 300, 600, 1800 s" in str(_static(folder))


def _static(folder: Path) -> InputError:
    with pytest.raises(InputError) as error:
        open_series(folder, modality="PT")
    assert error.value.code == "SER_DYNAMIC"
    return error.value


def test_files_of_a_later_frame_may_come_first(tmp_path: Path, frames: list[Made]) -> None:
    def edit(number: int, z: int, ds: Dataset) -> None:
        ds.ImageIndex = ds.InstanceNumber = (4 - number) * GRID.shape[0] + z + 1

    folder = write_dynamic(tmp_path / "pt", frames, edit=edit)
    np.testing.assert_allclose(opened(folder, "1")[0], frames[0].suv, rtol=2e-4)


def test_copies_are_dropped(tmp_path: Path, frames: list[Made]) -> None:
    folder = write_dynamic(tmp_path / "pt", frames)
    for i, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, folder / f"copy_{file.name}")
        if i % 2:
            change(folder / f"copy_{file.name}", lambda ds: setattr(ds, "SOPInstanceUID", generate_uid()))
    ((_, source),) = open_frames(folder, Wanted("all"))
    np.testing.assert_allclose(source.read(0, 5), long_frame(frames), rtol=2e-4)
    notes = source.provenance["notes"]
    assert isinstance(notes, list)
    assert "identical_slices_dropped" in notes


def test_equal_frames_of_a_dynamic_series_are_no_copies(tmp_path: Path) -> None:
    frames = uniform([2.0] * 3, [0, 100, 200], [100, 100, 100])
    folder = write_dynamic(tmp_path / "pt", frames)
    assert "3 frames of 100 s each" in str(_static(folder))
    np.testing.assert_allclose(opened(folder, "all")[0], frames[0].suv, rtol=2e-4)


def test_what_nothing_tells_apart(tmp_path: Path, frames: list[Made]) -> None:
    def alike(number: int, z: int, ds: Dataset) -> None:
        _one_time(number, z, ds)
        del ds.FrameReferenceTime

    folder = write_dynamic(tmp_path / "pt", frames, edit=alike)
    assert refused(folder, "1").code == "SER_DYNAMIC"
    assert "nothing says which slice" in str(_static(folder))


def test_frames_without_times_can_be_chosen_and_not_summed(tmp_path: Path, frames: list[Made]) -> None:
    def numbered(number: int, z: int, ds: Dataset) -> None:
        ds.AcquisitionTime, ds.AcquisitionDate = ds.SeriesTime, ds.SeriesDate
        del ds.FrameReferenceTime

    folder = write_dynamic(tmp_path / "pt", frames, edit=numbered)
    np.testing.assert_allclose(opened(folder, "4")[0], frames[3].suv, rtol=2e-4)
    assert refused(folder, "all").code == "FRM_TIMES"
    uncorrected = write_dynamic(tmp_path / "none", frames, "NONE", edit=numbered)
    assert refused(uncorrected, "4").code == "FRM_TIMES"


# -- what is refused --------------------------------------------------------------------------------------------------


def test_an_incomplete_frame_is_named_and_the_others_are_read(tmp_path: Path, frames: list[Made]) -> None:
    folder = write_dynamic(tmp_path / "pt", frames)
    for z in (2, 5):
        (folder / f"f02_{z:05d}.dcm").unlink()
    for error in (refused(folder, "all"), refused(folder, "3"), refused(folder, "", "3")):
        assert error.code == "SER_PARTIAL_VOLUME"
        assert "frame 3 lacks 2 slices" in error.found
    with pytest.raises(
        InputError, match=r"SER_PARTIAL_VOLUME pt: 5 frames .* frame 3 lacks 2 slices; .*--frames 1-2,4-5"
    ):
        open_series(folder, modality="PT")
    (got,) = opened(folder, "1-2,4-5")  # what the line says
    np.testing.assert_allclose(got, long_frame([*frames[:2], *frames[3:]]), rtol=2e-4)
    np.testing.assert_allclose(opened(folder, "5")[0], frames[4].suv, rtol=2e-4)


def test_overlapping_frames(tmp_path: Path) -> None:
    folder = write_dynamic(tmp_path / "pt", uniform([1, 2, 3], [0, 100, 150], [100, 100, 100]))
    error = refused(folder, "all")
    assert error.code == "FRM_OVERLAP"
    assert opened(folder, error.remedy.split()[-1])


def test_frames_at_another_place(tmp_path: Path, frames: list[Made]) -> None:
    def moved(number: int, z: int, ds: Dataset) -> None:
        if number == 3:
            x, y, along = ds.ImagePositionPatient
            ds.ImagePositionPatient = [x, y, f"{float(along) + 7.5:g}"]

    error = refused(write_dynamic(tmp_path / "z", frames, edit=moved), "all")
    assert (error.code, "frame 4" in error.found) == ("FRM_GRID", True)

    def sideways(number: int, z: int, ds: Dataset) -> None:
        if number == 3:
            x, y, along = ds.ImagePositionPatient
            ds.ImagePositionPatient = [f"{float(x) + 4:g}", y, along]

    folder = write_dynamic(tmp_path / "x", frames, edit=sideways)
    assert refused(folder, "all").code == "FRM_GRID"
    assert opened(folder, "1-3")


@pytest.mark.parametrize(("frames_", "pairs"), [("1", ()), ("all", ()), ("", ("1",))])
def test_a_static_series_has_no_frames_to_choose(tmp_path: Path, frames_: str, pairs: tuple[str, ...]) -> None:
    folder = write_dynamic(tmp_path / "pt", uniform([1.0], [0], [300]))
    assert refused(folder, frames_, *pairs).code == "CFG_NO_EFFECT"


def test_a_frame_that_is_not_there(tmp_path: Path, frames: list[Made]) -> None:
    error = refused(write_dynamic(tmp_path / "pt", frames), "6")
    assert (error.code, error.found) == ("FRM_RANGE", "frame 6 of a series of 5")


# -- gates ------------------------------------------------------------------------------------------------------------


def gated(tmp_path: Path, durations: list[float]) -> tuple[Path, list[Made]]:
    gates = uniform([1.0, 2.0, 4.0], [0, 0, 0], durations)

    def trigger(number: int, z: int, ds: Dataset) -> None:
        ds.TriggerTime = str(300 * (2 - number))  # written last to first
        ds.ImageIndex = ds.InstanceNumber = z + 1

    return write_dynamic(tmp_path / "pt", gates, kind="GATED", edit=trigger), gates


def test_gates_are_in_order_of_their_trigger_time(tmp_path: Path) -> None:
    folder, gates = gated(tmp_path, [180.0] * 3)
    assert "3 gates of 180 s each" in str(_static(folder))
    for number, gate in enumerate(reversed(gates), 1):
        np.testing.assert_allclose(opened(folder, str(number))[0], gate.suv, rtol=2e-4)
    np.testing.assert_allclose(opened(folder, "all")[0], sum(g.suv for g in gates) / 3, rtol=2e-4)


def test_phases_of_a_ct_are_not_chosen_by_frames(tmp_path: Path) -> None:
    for phase in range(2):

        def of_phase(z: int, ds: Dataset, phase: int = phase) -> None:
            ds.SOPInstanceUID = generate_uid()
            ds.AcquisitionTime = f"12000{phase}"

        values = np.linspace(-1000, 500 + phase, np.prod(GRID.shape), dtype=np.float32).reshape(GRID.shape)
        write_series(tmp_path / "ct" / str(phase), ArraySource(values, GRID, HU), series_number=2, edit=of_phase)
    with pytest.raises(InputError, match="SER_DYNAMIC ct: 2 frames of unknown duration; export one phase"):
        open_series(tmp_path / "ct", modality="CT")


def test_a_trigger_time_that_is_the_time_of_a_frame(tmp_path: Path, frames: list[Made]) -> None:
    def unsaid(number: int, z: int, ds: Dataset) -> None:
        ds.SeriesType, ds.TriggerTime = ["WHOLE BODY", "IMAGE"], str(1e6 - 1000 * number)

    folder = write_dynamic(tmp_path / "pt", frames, edit=unsaid)
    assert "5 frames of" in str(_static(folder))
    np.testing.assert_allclose(opened(folder, "all")[0], long_frame(frames), rtol=2e-4)


def test_gates_of_unequal_duration(tmp_path: Path) -> None:
    folder, gates = gated(tmp_path, [60.0, 60.0, 120.0])
    np.testing.assert_allclose(
        opened(folder, "all")[0], (gates[0].suv + gates[1].suv + 2 * gates[2].suv) / 4, rtol=2e-4
    )
    (_, _), (low, _) = open_frames(folder, Wanted(pairs=("1",)))
    assert low.dose is not None
    assert low.dose.drf == pytest.approx(1.0)
