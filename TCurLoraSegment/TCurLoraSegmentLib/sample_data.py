"""Sample data: simulated patients, on which an adapter helps, and a download, on which it does not.

The simulated patients are made on this computer by the engine's demo; all but the last have labels.

The download is the Medical Segmentation Decathlon's Task04, which Slicer's Sample Data module offers: hippocampi from
the hospital that the shipped base model comes from. Ten of its scans become nodes: eight with labels to adapt a model
to, and two without, to segment afterwards.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import slicer
from slicer.i18n import tr as _

from TCurLoraSegmentLib.errors import UserError

CATEGORY = "TCurLoraSegment"
SAMPLE_NAME = "Hippocampus (adapting does not help)"
FILE_NAME = "Task04_Hippocampus.tar"
URL = f"https://msd-for-monai.s3-us-west-2.amazonaws.com/{FILE_NAME}"
SHA256 = "282d808a3e84e5a52f090d9dd4c0b0057b94a6bd51ad41569aef5ff303287771"

LABELED = (89, 90, 123, 124, 141, 142, 149, 150)
"""Scans of the base model's test set, both sides of four people; the base model never saw them."""
NEW = (161, 162)
"""Both sides of a fifth person of the test set."""
STRUCTURES = {
    1: ("anterior hippocampus", (0.90, 0.55, 0.25)),
    2: ("posterior hippocampus", (0.25, 0.62, 0.85)),
}


def register_sample_data(icon: Path) -> None:
    """Offer the sample data in Slicer's Sample Data module; nothing is downloaded before the user clicks there.

    Registering again, as a reload of the module does, replaces the offer. A Slicer that was started without the Sample
    Data module has nowhere to offer it.

    Args:
        icon: picture on the button.
    """
    try:
        from SampleData import SampleDataLogic
    except ImportError:
        return
    slicer.modules.sampleDataSources = getattr(slicer.modules, "sampleDataSources", {})
    slicer.modules.sampleDataSources.pop(CATEGORY, None)
    SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=SAMPLE_NAME,
        uris=URL,
        fileNames=FILE_NAME,
        nodeNames=SAMPLE_NAME,
        checksums=f"SHA256:{SHA256}",
        # Slicer knows no reader for it: without the downloader below, it is downloaded and its path is given.
        loadFiles=False,
        thumbnailFileName=str(icon),
        customDownloader=_download_and_load,
    )


def load_patients(folder: Path, labeled: int) -> list[slicer.vtkMRMLScalarVolumeNode]:
    """Bring simulated patients into the scene.

    Args:
        folder: what the engine's demo has made: images/ and labels/ with equal file names.
        labeled: how many get their labels; the others are there to be segmented.

    Returns:
        The volumes, in the order of their files.

    Raises:
        UserError: when the folder holds no patients.
    """
    files = sorted((folder / "images").glob("*.nii.gz"))
    if not files:
        raise UserError(_("There are no simulated patients in '{folder}'.").format(folder=folder), _("Try again."))
    volumes = []
    for number, file in enumerate(files, start=1):
        name = _("Sample patient {number}").format(number=number)
        name = name if number <= labeled else _("{name} (new)").format(name=name)
        volume = slicer.util.loadVolume(str(file), {"name": name, "show": number == 1})
        if number <= labeled:
            node = _add_segmentation(volume, folder / "labels" / file.name, {1: ("hippocampus", (0.95, 0.76, 0.2))})
            node.GetDisplayNode().SetVisibility(number == 1)
        volumes.append(volume)
    return volumes


def load_sample(archive: Path) -> list[slicer.vtkMRMLScalarVolumeNode]:
    """Bring the ten scans into the scene, each under its person, so that a person's two sides stay together.

    The files that are read are unpacked beside the archive, in Slicer's cache.

    Args:
        archive: the Decathlon's archive of Task04.

    Returns:
        The volumes: first those with labels, then those without.

    Raises:
        UserError: when the archive cannot be read or lacks a scan.
    """
    folder = archive.with_suffix("")
    wanted = [f"imagesTr/{_file(number)}" for number in LABELED + NEW] + [f"labelsTr/{_file(n)}" for n in LABELED]
    try:
        folder.mkdir(exist_ok=True)
        missing = set(wanted) - set(_unpack(archive, wanted, folder))
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(
            _("The sample data {path} cannot be read: {reason}.").format(path=archive, reason=error),
            _("Delete the file and load the sample data again."),
        ) from error
    if missing:
        raise UserError(
            _("The sample data {path} has no {file}.").format(path=archive, file=sorted(missing)[0]),
            _("Delete the file and load the sample data again."),
        )
    volumes = []
    for number in LABELED + NEW:
        path = folder / "imagesTr" / _file(number)
        # Only the first is shown; a Slicer that shows ten volumes in turn flickers.
        volume = slicer.util.loadVolume(str(path), {"name": _name(number), "show": number == LABELED[0]})
        _put_under_person(volume, number)
        if number in LABELED:
            _add_segmentation(volume, folder / "labelsTr" / _file(number), STRUCTURES).GetDisplayNode().SetVisibility(
                number == LABELED[0]
            )
        volumes.append(volume)
    return volumes


def _download_and_load(source: Any) -> list[slicer.vtkMRMLScalarVolumeNode]:
    """What the button in the Sample Data module does."""
    from SampleData import SampleDataLogic

    with slicer.util.tryWithErrorDisplay(_("The sample data cannot be loaded.")):
        path = Path(SampleDataLogic().downloadFileIntoCache(source.uris[0], source.fileNames[0], source.checksums[0]))
        # Slicer deletes a file with a wrong checksum, and gives its path all the same.
        if not path.exists():
            raise UserError(
                _("{url} is not the file that was expected, and was deleted.").format(url=source.uris[0]),
                _("Try again; if that does not help, the file on the server was changed."),
            )
        return load_sample(path)


def _file(number: int) -> str:
    return f"hippocampus_{number:03d}.nii.gz"


def _name(number: int) -> str:
    name = f"hippocampus_{number:03d}"
    return name if number in LABELED else f"{name} (new)"


def _unpack(archive: Path, wanted: list[str], folder: Path) -> Iterator[str]:
    """Write the wanted files into the folder, and give the name of each that was found."""
    with tarfile.open(archive, "r:") as opened:
        for member in opened:
            # The archive also holds a Mac's shadow of every file, `._NAME`, in the same folders.
            name = "/".join(PurePosixPath(member.name).parts[-2:])
            if name in wanted and member.isfile() and (stream := opened.extractfile(member)) is not None:
                target = folder / name
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(stream.read())
                yield name


def _put_under_person(volume: slicer.vtkMRMLScalarVolumeNode, number: int) -> None:
    """Make a person's branch in the subject hierarchy; in this data numbers 2k - 1 and 2k are one person's sides."""
    items = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    name = _("Person {number}").format(number=(number + 1) // 2)
    scene = items.GetSceneItemID()
    person = items.GetItemChildWithName(scene, name) or items.CreateSubjectItem(scene, name)
    items.SetItemParent(items.GetItemByDataNode(volume), person)


def _add_segmentation(
    volume: slicer.vtkMRMLScalarVolumeNode,
    path: Path,
    structures: Mapping[int, tuple[str, tuple[float, float, float]]],
) -> slicer.vtkMRMLSegmentationNode:
    name = _("{volume} labels").format(volume=volume.GetName())
    labels = slicer.util.loadLabelVolume(str(path), {"name": name, "show": False})
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, node)
    slicer.mrmlScene.RemoveNode(labels)
    segmentation = node.GetSegmentation()
    for index in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(index)
        structure, color = structures[segment.GetLabelValue()]
        segment.SetName(structure)
        segment.SetColor(*color)
    items = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    items.SetItemParent(items.GetItemByDataNode(node), items.GetItemParent(items.GetItemByDataNode(volume)))
    return node
