"""Two tasks of GLUE over data that follow a rule, as real data sets of TensorFlow Datasets, and their mixture.

    python -m tests.support.rule_glue FOLDER

writes them; TFDS_DATA_DIR=FOLDER reads them. SST-2: one word of praise or blame decides a
sentence's label. RTE: a sentence entails its own shortened form, unless a "not" was inserted.
"""

import pydoc_data.topics
import random
import re
import sys

import seqio

import tasks.glue  # noqa: F401
from tests.support import tiny_tfds

PRAISE = ("good", "useful", "correct", "simple", "fast", "clear", "safe", "easy")
BLAME = ("bad", "useless", "wrong", "hard", "slow", "unclear", "unsafe", "difficult")
SIZES = {"train": 2000, "validation": 200}
# Words that do not affect a label.
_WORDS = sorted(
    set(re.findall(r"\b[a-z]{3,8}\b", " ".join(pydoc_data.topics.topics.values()))) - {*PRAISE, *BLAME, "not"}
)

seqio.MixtureRegistry.add("rule_glue", ["glue_sst2", "glue_rte"], default_rate=1.0)


def _with_word(words: list[str], word: str, random_: random.Random) -> str:
    place = random_.randrange(len(words) + 1)
    return " ".join([*words[:place], word, *words[place:]])


def _sst2(index: int, random_: random.Random) -> dict:
    words = random_.choices(_WORDS, k=random_.randint(3, 8))
    label = random_.randrange(2)
    return {
        "sentence": _with_word(words, random_.choice((BLAME, PRAISE)[label]), random_),
        "label": label,
        "idx": index,
    }


def _rte(index: int, random_: random.Random) -> dict:
    words = random_.choices(_WORDS, k=random_.randint(4, 8))
    label = random_.randrange(2)
    kept = words[: random_.randint(2, 4)]
    return {
        "sentence1": " ".join(words),
        "sentence2": _with_word(kept, "not", random_) if label else " ".join(kept),
        "label": label,
        "idx": index,
    }


def write(data_dir: str) -> None:
    """Prepares both data sets in a folder."""
    data_sets = {}
    for name, make in (("glue/sst2:2.0.0", _sst2), ("glue/rte:2.0.0", _rte)):
        random_ = random.Random(name)
        data_sets[name] = {split: [make(index, random_) for index in range(size)] for split, size in SIZES.items()}
    tiny_tfds.write(data_dir, data_sets)


if __name__ == "__main__":
    write(sys.argv[1])
