"""Tokenizers: how a model reads text. Each is fitted on training rows only, saved with the model, loaded with it.

Every tokenizer answers ``encode(texts) -> (ids [sum of lengths] int32, lengths [N] int64)``: flat arrays, because
lists of Python integers are walked by the garbage collector and slow a training loop down. Id 0 is padding, except
in a pretrained vocabulary, which has its own.

Those that know which characters a token comes from (``gives_words``) can also ``encode_with_words``, by which the
tokens of two tokenizers are compared word by word.
"""

from kdresearch.data.tokenizers.ngram import NgramTokenizer
from kdresearch.data.tokenizers.pretrained import PretrainedTokenizer
from kdresearch.data.tokenizers.protocol import TextTokenizer, WordwiseTokenizer, gives_words
from kdresearch.data.tokenizers.rows import NO_WORD, TRUNCATIONS, UNKNOWN, WORDS, Encoded, EncodedWords, cut, words_of
from kdresearch.data.tokenizers.subword import SubwordTokenizer
from kdresearch.data.tokenizers.torchtext import TorchtextTokenizer
from kdresearch.data.tokenizers.word import WordTokenizer

__all__ = [
    "NO_WORD",
    "TRUNCATIONS",
    "UNKNOWN",
    "WORDS",
    "Encoded",
    "EncodedWords",
    "NgramTokenizer",
    "PretrainedTokenizer",
    "SubwordTokenizer",
    "TextTokenizer",
    "TorchtextTokenizer",
    "WordTokenizer",
    "WordwiseTokenizer",
    "cut",
    "gives_words",
    "words_of",
]
