"""Folders of images, named by the paths in a row."""

import os
from urllib.parse import unquote

from quecc_jax.data.references import ImageRef, image_path
from quecc_jax.errors import BadRow
from quecc_jax.paths import as_path, is_remote


class Folders:
    """One or several folders, here or in a bucket; an image comes from the first that has it."""

    def __init__(self, roots: tuple[str, ...]):
        self.roots = roots or ("",)

    def find(self, ref: ImageRef) -> str:
        """The path of an image.

        Raises:
          BadRow: the reference is no path, or there are several folders and none has the image, or the
            path is written as Windows or an address writes it.
        """
        ref = image_path(ref)
        if is_remote(ref):
            return ref
        odd = "\\" in ref or "%" in ref
        if len(self.roots) == 1 and not odd:
            return os.path.join(self.roots[0], ref)
        if (path := self._existing(ref)) is not None:
            return path
        for what, plain in (("backslashes", ref.replace("\\", "/")), ("percent signs", unquote(ref))):
            if plain != ref and self._existing(plain) is not None:
                raise BadRow(
                    "picture missing", f"image {ref} is not there but {plain} is; write it without {what}"
                )
        searched = ", ".join(root or "." for root in self.roots)
        raise BadRow("picture missing", f"image {ref} is in none of {searched}; check the folders")

    def _existing(self, ref: str) -> str | None:
        paths = (os.path.join(root, ref) for root in self.roots)
        return next((path for path in paths if as_path(path).exists()), None)
