"""What may lie in a model's folder on a machine: the same as a push takes, for not everything in a bucket was pushed.

Pure. Of configurations only the names are known here; see `machine.py` for what stands in them.
"""

from collections.abc import Collection, Sequence

from bootstrap.steps import ModelFile

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CODE = (".py", ".pyc", ".so")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model")
TOKENIZER_ENDINGS = (".tiktoken", ".bpe.model")
_SHOWN = 5


def refused_files(paths: Sequence[str], allow: Collection[str]) -> list[str]:
    """Return what keeps a model from being served, one line each; empty means nothing.

    Args:
        paths: Of the release's files.
        allow: `pickle` and `code`, where the push said so.
    """
    problems = []
    if "config.json" not in paths:
        problems.append("it has no config.json")
    if not any(path in TOKENIZERS or path.endswith(TOKENIZER_ENDINGS) for path in paths):
        problems.append("it has no tokenizer")
    if "pickle" not in allow and (pickled := [path for path in paths if path.endswith(PICKLED)]):
        problems.append(
            f"pickled, which runs code when it is loaded: {_shown(pickled)} (gpu models push --allow-pickle)"
        )
    if "code" not in allow and (code := [path for path in paths if path.endswith(CODE)]):
        problems.append(f"code: {_shown(code)} (gpu models push --allow-code)")
    return problems


def config_files(files: Sequence[ModelFile]) -> list[ModelFile]:
    """Return the files that may name code to be loaded."""
    return [file for file in files if file.path.endswith("config.json")]


def _shown(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more
