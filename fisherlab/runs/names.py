"""Names of layers as parts of the names of files: of every system, short, and no two alike."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable

_PLAIN = re.compile(r"[A-Za-z0-9_.]+")  # without "-", which stands before keys and before what endings say
_MOST = 80  # of the 255 bytes that systems give a name, with room for the rest of it and its temporary form
_KEY = 8  # hexadecimal digits: of a thousand layers two meet with a chance of one in 8,000


def file_names(layers: Iterable[str]) -> dict[str, str]:
    """For each layer a part of the name of a file.

    A name of letters, digits, dots and underscores stays as it is, and the model itself is `root`. Any other
    name, a long one, and those that differ only in case have other characters replaced by an underscore and
    a key at their end, which depends on the layer's name alone.

    >>> file_names(["encoder.0", "a/b", ""])
    {'encoder.0': 'encoder.0', 'a/b': 'a_b-c14cddc0', '': 'root'}
    """
    wanted = {layer: layer or "root" for layer in layers}
    count = Counter(name.lower() for name in wanted.values())
    return {
        layer: name
        if _PLAIN.fullmatch(name) and len(name) <= _MOST and count[name.lower()] == 1
        else _keyed(layer, name)
        for layer, name in wanted.items()
    }


def _keyed(layer: str, name: str) -> str:
    key = hashlib.sha256(layer.encode("utf-8", "surrogatepass")).hexdigest()[:_KEY]
    return f"{re.sub(r'[^A-Za-z0-9_.]', '_', name)[:_MOST]}-{key}"
