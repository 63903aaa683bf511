"""Regular headers are read as pydicom reads them; whatever is not regular is left to pydicom."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from storage.dicom_fields import SEQUENCES, TAGS, Fields, read_header
from storage.dicom_header import integer_of, items_of, text_of

PET = "1.2.840.10008.5.1.4.1.1.128"
WANTED = frozenset({*TAGS.values(), 0x00091010})


def written(syntax: UID = ExplicitVRLittleEndian, undefined: bool = True) -> bytes:
    """A slice with a nested sequence, text of several values and a private field."""
    nuclide, drug, ds = Dataset(), Dataset(), Dataset()
    nuclide.CodeValue, nuclide.CodeMeaning = "C-111A1", "^18^Fluorine"
    drug.RadionuclideTotalDose, drug.RadionuclideCodeSequence = "3.7e8", [nuclide]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = syntax, UID(PET)
    ds.SpecificCharacterSet, ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = "ISO_IR 100", PET, "1.2.3", "PT"
    ds.ImageType, ds.PatientID, ds.SeriesNumber = ["ORIGINAL", "PRIMARY"], "p", "7"
    ds.add_new(0x00090010, "LO", "SOMEBODY")
    ds.add_new(0x00091010, "LO", "something")
    ds.RadiopharmaceuticalInformationSequence = [drug]
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.PixelRepresentation = 2, 300, 16, 0
    for sequence in (ds["RadiopharmaceuticalInformationSequence"], drug["RadionuclideCodeSequence"]):
        sequence.is_undefined_length = undefined
    for item in (drug, nuclide):
        item.is_undefined_length_sequence_item = undefined
    ds.PixelData = np.zeros(600, "<u2").tobytes()
    ds["PixelData"].VR = "OW"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def test_tags_are_those_of_the_standard() -> None:
    assert {name: tag_for_keyword(name) for name in TAGS} == TAGS
    assert {TAGS["RadiopharmaceuticalInformationSequence"], TAGS["RadionuclideCodeSequence"]} < SEQUENCES


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_fields_are_those_that_pydicom_reads(syntax: UID, undefined: bool) -> None:
    content = written(syntax, undefined)
    read = read_header(content, WANTED, (PET,))
    assert read is not None
    expected = pydicom.dcmread(io.BytesIO(content))
    assert (read.syntax, read.declared) == (syntax, PET)
    order = "big" if syntax == ExplicitVRBigEndian else "little"
    assert content[read.pixels : read.pixels + 4] == b"".join(n.to_bytes(2, order) for n in (0x7FE0, 0x0010))  # type: ignore[arg-type]
    for name in ("SOPClassUID", "ImageType", "PatientID", "SeriesNumber", "PatientWeight"):
        assert text_of(read.fields, name) == text_of(expected, name)
    assert integer_of(read.fields, "Columns") == 300
    private = read.fields.get_item(0x00091010)
    assert private is not None
    assert private.value.strip() == b"something"
    (drug,) = items_of(read.fields, "RadiopharmaceuticalInformationSequence")
    assert isinstance(drug, Fields)
    assert text_of(drug, "RadionuclideTotalDose") == "3.7e8"
    (nuclide,) = items_of(drug, "RadionuclideCodeSequence")
    assert text_of(nuclide, "CodeMeaning") == "^18^Fluorine"


def test_of_another_class_only_its_own_is_read() -> None:
    read = read_header(written(), WANTED, ("1.2.840.10008.5.1.4.1.1.2",))
    assert read is not None
    assert text_of(read.fields, "SOPClassUID") == PET
    assert not text_of(read.fields, "PatientID")


@pytest.mark.parametrize(
    ("what", "into"),
    [
        (b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00Lo"),  # a VR that does not exist
        (b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\x0d\xe0\1\0\0\0"),  # a delimiter with a length
        (b"\xfe\xff\xdd\xe0\0\0\0\0", b"\xfe\xff\xdd\xe1\0\0\0\0"),  # no delimiter of the sequence
        (b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\x00\xe0\xff\xff\xff\x7f"),  # an item longer than the file
        (b"SQ\0\0\xff\xff\xff\xff", b"UN\0\0\xff\xff\xff\xff"),  # a sequence of unknown VR
        (b"ISO_IR 100", b"ISO_IR 999"),  # characters of a set that does not exist
        (b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"),  # another syntax than the file is in
    ],
)
def test_what_is_not_regular_is_left_to_pydicom(what: bytes, into: bytes) -> None:
    content = written()
    assert what in content
    assert len(what) == len(into)
    assert read_header(content.replace(what, into, 1), WANTED, (PET,)) is None


def test_a_header_that_is_cut_is_left_to_pydicom() -> None:
    content = written()
    whole = read_header(content, WANTED, (PET,))
    assert whole is not None
    assert [read_header(content[:n], WANTED, (PET,)) for n in range(132, whole.pixels + 1)] == [None] * (
        whole.pixels - 131
    )


def test_a_byte_that_is_changed_never_breaks_the_reader() -> None:
    content = written()
    rng = np.random.default_rng(0)
    for at in range(132, len(content) - 1200):
        changed = bytearray(content)
        changed[at] = rng.integers(256)
        read_header(bytes(changed), WANTED, (PET,))  # a header, or None
