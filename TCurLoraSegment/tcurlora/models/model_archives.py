"""Zip files of base models: looked through before anything is unpacked, and only the files of models are."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tcurlora.errors import InputError
from tcurlora.models import bundle_files, nnunet_files

MOST_ENTRIES = 100_000
LARGEST_RATIO = 20
"""Weights are close to noise, and shrink little; what claims to unpack to more than this was made to fill a disk."""
MARGIN_BYTES = 16 * 2**20
SPARE_DISK = 2**30

_TRAINED = re.compile(r"[^/]+__[^/]+__[^/]+")
_OF_FOLD = re.compile(rf"fold_(all|\d{{1,3}})/{re.escape(nnunet_files.CHECKPOINT)}")


def refused(reason: str, remedy: str = "Get the file again from its source, or unpack it yourself.") -> InputError:
    """Return the error for an archive that is not unpacked."""
    return InputError(f"The archive is refused: {reason}.", remedy, "unsafe_zip")


def harmless_entries(opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """List an archive's files, once every entry has been found harmless.

    Raises:
        InputError: when an entry points outside of it, is a link, or is packed in an unusual way.
    """
    infos = [info for info in opened.infolist() if not info.is_dir()]
    if len(infos) > MOST_ENTRIES:
        raise refused(f"it has more than {MOST_ENTRIES} entries")
    for info in infos:
        parts = PurePosixPath(info.filename).parts
        if info.filename.startswith("/") or ".." in parts or any(c in info.filename for c in "\\:\0"):
            raise refused(f"the entry '{info.filename}' points outside of it")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise refused(f"the entry '{info.filename}' is a link or a device")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refused(f"the entry '{info.filename}' is encrypted or packed in an unusual way")
    return infos


def unpack_models(archive: Path, folder: Path) -> None:
    """Unpack the files of base models of any kind; all others are left out.

    Args:
        archive: such as `nnUNetv2_export_model_to_zip` writes, or a bundle's.
        folder: where to; must not exist.

    Raises:
        InputError: when it is not a zip file, is not harmless, or holds no model.
        OSError: when it cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = harmless_entries(opened)
            places = {info.filename: place for info in infos if (place := _place_of(PurePosixPath(info.filename)))}
            kept = [info for info in infos if info.filename in places]
            total = sum(info.file_size for info in kept)
            if total > LARGEST_RATIO * sum(info.compress_size for info in kept) + MARGIN_BYTES:
                raise refused(f"it would unpack to {total / 1e9:.1f} GB, which is no model of its size")
            if not kept:
                raise InputError(
                    f"'{archive.name}' holds neither a MONAI bundle nor a trained nnU-Net.",
                    "Choose the zip file of a bundle, or one of nnUNetv2_export_model_to_zip.",
                    "bad_bundle",
                )
            folder.mkdir(parents=True)
            if total + SPARE_DISK > shutil.disk_usage(folder).free:
                raise refused(f"it unpacks to {total / 1e9:.1f} GB, and that is not free on the disk", "Make room.")
            for info in kept:
                target = folder / places[info.filename]
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, target.open("xb") as copy:
                    shutil.copyfileobj(source, copy)
    except (zipfile.BadZipFile, EOFError, zlib.error, ValueError, FileExistsError, NotImplementedError) as error:
        raise refused(f"it is not a readable zip file ({error})") from error


def _place_of(name: PurePosixPath) -> PurePosixPath | None:
    """Where a file of a model goes; None for any other file."""
    for depth, part in enumerate(name.parts[:-1]):
        if _TRAINED.fullmatch(part):
            inside = name.parts[depth + 1 :]
            ours = "/".join(inside) in (nnunet_files.PLANS, nnunet_files.DATASET, nnunet_files.SETTINGS)
            return name if ours or _OF_FOLD.fullmatch("/".join(inside)) else None
    for depth in (0, 1):
        inside = name.parts[depth:]
        if inside and (len(inside) > 1 or depth == 0) and bundle_files.belongs(PurePosixPath(*inside)):
            return PurePosixPath(*inside)
    return None
