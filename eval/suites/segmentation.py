"""Chinese text as words, cut by jieba, the segmenter of LongBench's published metrics."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

from elastic_jax.errors import ConfigError


def chinese_words(text: str) -> list[str]:
    """The words of a text in order, white space and punctuation included.

    Raises:
        ConfigError: jieba is not installed.
    """
    return list(_segmenter().cut(text))


@cache
def _segmenter() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba 0.42.1 is older than today's rules for escapes in strings
        try:
            import jieba
        except ImportError as error:
            raise ConfigError(
                "Scores of Chinese answers need the word segmenter of the benchmark: pip install "
                "'elastic-jax[longbench]', or name English tasks with --tasks."
            ) from error
        segmenter = jieba.Tokenizer()
        # its own `initialize` would load a cache that anybody may have put into the folder of temporary files
        segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
        segmenter.initialized = True
        return segmenter
