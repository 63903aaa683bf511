"""One image in memory with its grid and unit, and its way to and from NIfTI files, nibabel, SimpleITK and torch.

Array axes are (z, y, x) everywhere.  An affine maps the voxel index (x, y, z, 1) to RAS+ millimetres, as in NIfTI.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from storage import integrity, nifti
from storage.errors import InputError
from storage.source import BQML, HU, LABEL, SUV, Grid, ImageSource

if TYPE_CHECKING:
    import torch

SUV_WINDOW = (0.0, 7.0)  # SUV drawn white and black
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS+ millimetres to the LPS+ millimetres of DICOM and ITK, and back
_MM = {"unknown": 1.0, "meter": 1000.0, "mm": 1.0, "micron": 0.001}  # nibabel's names of a spatial unit


@dataclass(frozen=True, eq=False, repr=False)
class Image:
    """A volume in memory: voxels, where they lie, and what they measure.  It is an ``ImageSource``.

    Args:
        voxels: (z, y, x) numbers, all finite; kept as a read-only float32 copy.
        grid: shape and affine; its shape is that of the voxels.
        units: ``SUVbw``, ``Bq/mL``, ``HU`` or ``label``.
        provenance: facts about its origin as JSON-able values; nothing that identifies a patient.

    Raises:
        InputError: IMG_SHAPE for voxels that are not three-dimensional or not of the grid's shape; IMG_NONFINITE for
            NaN or Inf; IMG_UNITS for another unit.

    >>> import numpy as np
    >>> from petscale import Grid, Image
    >>> affine = np.diag([4.0, 4.0, 5.0, 1.0])  # voxels of 4 x 4 x 5 mm along x, y, z
    >>> image = Image(np.full((3, 8, 6), 2.5), Grid((3, 8, 6), affine))
    >>> image
    Image(3 x 8 x 6 voxels of 5 x 4 x 4 mm along z, y, x; SUVbw 2.5 to 2.5)
    >>> image.voxels.dtype, image.grid.spacing_mm, round(image.grid.voxel_ml, 6)
    (dtype('float32'), (5.0, 4.0, 4.0), 0.08)
    """

    voxels: NDArray[np.float32]
    grid: Grid
    units: str = SUV
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes Inf and is refused below
            voxels = np.array(self.voxels, dtype=np.float32, order="C")
        if voxels.shape != tuple(self.grid.shape):
            raise InputError(
                "IMG_SHAPE",
                where="image",
                found=f"voxels of shape {voxels.shape} on a grid of {tuple(self.grid.shape)}",
                remedy="give voxels in the order (z, y, x) and the grid they lie on",
            )
        if not np.isfinite(voxels).all():
            raise InputError(
                "IMG_NONFINITE", where="image", found="voxels that are NaN or Inf", remedy="replace them first"
            )
        if self.units not in (SUV, BQML, HU, LABEL):
            raise InputError(
                "IMG_UNITS", where="image", found=f"'{self.units}'", remedy=f"give {SUV}, {BQML}, {HU} or {LABEL}"
            )
        voxels.flags.writeable = False
        object.__setattr__(self, "voxels", voxels)

    def __repr__(self) -> str:
        shape, mm = (
            " x ".join(f"{v:g}" for v in values)
            for values in (self.grid.shape, np.round(self.grid.spacing_mm, 4).tolist())
        )
        low, high = float(self.voxels.min()), float(self.voxels.max())
        return f"Image({shape} voxels of {mm} mm along z, y, x; {self.units} {low:.4g} to {high:.4g})"

    def read(self, z0: int, z1: int) -> NDArray[np.float32]:
        """Return the slab ``z0 <= z < z1`` as (z, y, x)."""
        return self.voxels[z0:z1]

    @classmethod
    def of(cls, source: ImageSource) -> "Image":
        """Read any image source whole: a stored image, a phantom, a simulated scan, a file."""
        return cls(source.read(0, source.grid.shape[0]), source.grid, source.units, dict(source.provenance))

    # ---- files ------------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | Path, *, units: nifti.Units = "SUVbw") -> "Image":
        """Read a NIfTI file; its voxels are never reoriented.

        Args:
            path: a 3D ``.nii`` or ``.nii.gz``.
            units: what its values are; the file does not say.

        Raises:
            InputError: IMG_NO_FILE, the NII_ codes, IMG_NONFINITE.
        """
        with integrity.scratch() as scratch:
            return cls.of(nifti.open_nifti(Path(path), units=units, workdir=scratch))

    def save(self, path: str | Path) -> None:
        """Write a float32 NIfTI file with the same grid; a file that is there is replaced.

        Args:
            path: ends in ``.nii`` or ``.nii.gz``.

        Raises:
            InputError: IMG_FORMAT for another ending; DISK_FULL and its kin.

        >>> image.save("image.nii.gz")
        >>> again = Image.open("image.nii.gz", units="SUVbw")
        >>> bool((again.voxels == image.voxels).all()), again.grid.matches(image.grid)
        (True, True)
        """
        path = Path(path)
        if not path.name.lower().endswith((".nii", ".nii.gz")):
            raise InputError(
                "IMG_FORMAT", where=path.name, found="not the name of a NIfTI file", remedy="end it in .nii or .nii.gz"
            )
        nifti.write_nifti(path, self.grid, self.read)

    # ---- other libraries --------------------------------------------------------------------------------------------

    def to_nibabel(self) -> Any:
        """Return a ``nibabel.Nifti1Image``: array axes (x, y, z), the same RAS+ affine, millimetres.

        >>> volume = image.to_nibabel()
        >>> volume.shape, volume.affine[2, 2].item()
        ((6, 8, 3), 5.0)
        >>> Image.from_nibabel(volume)
        Image(3 x 8 x 6 voxels of 5 x 4 x 4 mm along z, y, x; SUVbw 2.5 to 2.5)
        """
        volume = nibabel.Nifti1Image(np.array(self.voxels.transpose(2, 1, 0)), self.grid.affine)
        volume.header.set_xyzt_units("mm")
        return volume

    @classmethod
    def from_nibabel(cls, volume: Any, *, units: nifti.Units = "SUVbw") -> "Image":
        """Take a three-dimensional nibabel image; an affine in metres or microns becomes one in millimetres.

        Args:
            volume: a spatial image with axes (x, y, z).
            units: what its values are.

        Raises:
            InputError: IMG_SHAPE, IMG_NONFINITE.
        """
        voxels = np.asarray(volume.dataobj)
        if voxels.ndim != 3:
            raise _not_3d(voxels.ndim)
        affine = np.array(volume.affine, dtype=np.float64)
        if hasattr(volume.header, "get_xyzt_units"):
            affine[:3] *= _MM[volume.header.get_xyzt_units()[0]]
        voxels = voxels.transpose(2, 1, 0)
        return cls(voxels, Grid(voxels.shape, affine), units)

    def to_sitk(self) -> Any:
        """Return a ``SimpleITK.Image`` of 32-bit floats: index (x, y, z), millimetres in LPS+.

        Raises:
            InputError: CFG_PACKAGE where SimpleITK is not installed.
        """
        sitk = _simpleitk()
        image = sitk.GetImageFromArray(self.voxels)
        affine = _LPS @ self.grid.affine
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        return image

    @classmethod
    def from_sitk(cls, image: Any, *, units: nifti.Units = "SUVbw") -> "Image":
        """Take a three-dimensional ``SimpleITK.Image`` of one number per voxel.

        Args:
            image: its physical space is LPS+ in millimetres, as SimpleITK has it for every format.
            units: what its values are.

        Raises:
            InputError: IMG_SHAPE, IMG_NONFINITE; CFG_PACKAGE where SimpleITK is not installed.
        """
        sitk = _simpleitk()
        if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
            raise _not_3d(image.GetDimension() + (image.GetNumberOfComponentsPerPixel() != 1))
        voxels = sitk.GetArrayFromImage(image)
        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        return cls(voxels, Grid(voxels.shape, _LPS @ affine), units)

    def to_torch(self) -> "torch.Tensor":
        """Return the voxels as a float32 tensor (z, y, x) of its own memory; the grid stays with this image.

        >>> tensor = image.to_torch()
        >>> tensor.shape
        torch.Size([3, 8, 6])
        >>> Image.from_torch(2 * tensor, image.grid, units=image.units)
        Image(3 x 8 x 6 voxels of 5 x 4 x 4 mm along z, y, x; SUVbw 5 to 5)
        """
        import torch

        return torch.from_numpy(np.array(self.voxels))

    @classmethod
    def from_torch(cls, tensor: "torch.Tensor", grid: Grid, *, units: nifti.Units = "SUVbw") -> "Image":
        """Take a tensor (z, y, x), from any device, as an image on ``grid``.

        Args:
            tensor: of any number type; a gradient is left behind.
            grid: where the voxels lie, for instance that of the image the tensor was made from.
            units: what its values are.

        Raises:
            InputError: IMG_SHAPE, IMG_NONFINITE.
        """
        return cls(tensor.detach().cpu().float().numpy(), grid, units)

    # ---- notebooks --------------------------------------------------------------------------------------------------

    def _repr_png_(self) -> bytes | None:
        """What Jupyter shows: the anterior maximum intensity projection, patient's right on the left.

        The window never depends on the image: SUV 0 to 7 black on white, HU of bone.  None for Bq/mL, which has none.
        """
        from petscale.reporting.pictures import BONE_HU, GREY, anterior_mip

        shown = {SUV: (SUV_WINDOW, GREY), HU: (BONE_HU, "gray"), LABEL: ((0.0, float(self.voxels.max()) or 1.0), GREY)}
        if self.units not in shown:
            return None
        window, colormap = shown[self.units]
        return base64.b64decode(anterior_mip(self, window, colormap).partition(",")[2])


def _not_3d(dimensions: int) -> InputError:
    return InputError(
        "IMG_SHAPE", where="image", found=f"{dimensions} dimensions", remedy="give one volume with one number per voxel"
    )


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError:
        raise InputError(
            "CFG_PACKAGE",
            where="SimpleITK",
            found="not installed",
            remedy='install it: pip install "petscale[simpleitk]"',
        ) from None
    return SimpleITK
