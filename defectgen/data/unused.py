"""Labels without an image, where several folders of images share one folder or file of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from defectgen.data.folders import Folder, folders_in, split_in_name
from defectgen.data.places import SET_SUFFIXES, child_folder, find_labels, label_file, marked_sets_about
from defectgen.data.readers import FILE_FORMATS, Unused
from defectgen.records import Problem


def truly_unused(problems: Sequence[Problem], images: Path, format: str, root: Path) -> list[Problem]:
    """`problems` of the folder `images`, without those labels that an image elsewhere below `root` has."""
    if not any(isinstance(problem, Unused) for problem in problems):
        return list(problems)
    owners = _Owners(images, format, root)
    kept = (problem for problem in problems if not (isinstance(problem, Unused) and owners.have(problem)))
    return [
        Problem(problem.severity, problem.path, problem.where, problem.reason, problem.remedy)
        if isinstance(problem, Unused)
        else problem
        for problem in kept
    ]


def not_among(problems: Sequence[Problem], known: Sequence[Problem]) -> list[Problem]:
    """`problems` without those that `known` tells already, perhaps with another remedy."""
    told = {(problem.path, problem.where, problem.reason) for problem in known}
    return [problem for problem in problems if (problem.path, problem.where, problem.reason) not in told]


class _Owners:
    """The images below a root, but for those of one folder, and which labels are theirs."""

    def __init__(self, images: Path, format: str, root: Path) -> None:
        self.format = format
        self.of_name: dict[str, list[tuple[Path, Folder]]] = {}
        for folder in folders_in(root):
            if not folder.path.is_relative_to(images):
                for image in folder.images:
                    self.of_name.setdefault(self._key(image.name), []).append((image, folder))

    def have(self, unused: Unused) -> bool:
        found = self.of_name.get(self._key(PurePosixPath(unused.image).name, is_label=True), [])
        return any(self._may_have(image, folder, Path(unused.path)) for image, folder in found)

    def _key(self, name: str, *, is_label: bool = False) -> str:
        return name if is_label or self.format in SET_SUFFIXES else Path(name).stem

    def _may_have(self, image: Path, folder: Folder, labels: Path) -> bool:
        """Whether the label is the image's; not where that has one of its own, or is of another split."""
        if self.format in SET_SUFFIXES:
            near = marked_sets_about(folder.path, None, self.format)
            if folder.split is not None and split_in_name(labels.name) not in (None, folder.split):
                return False
            return not near or labels in near
        suffix, _ = FILE_FORMATS[self.format]
        places = [find_labels(folder.path), folder.path, child_folder(folder.path.parent, "annotations")]
        own = [label_file(place, image.name, suffix) for place in places if place is not None]
        return labels in own or not any(path.is_file() for path in own)
