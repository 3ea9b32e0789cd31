"""A tokenizer and prose for evaluation tests, made from Python's own language reference."""

import functools

from transformers import PreTrainedTokenizerFast

from eval.suites.haystack import Haystack, prose_texts

VOCAB = 640


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(list(prose_texts(None, "train").values())[:20], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@functools.cache
def tiny_haystack() -> Haystack:
    return Haystack(prose_texts(None, "evaluation"), tiny_tokenizer())
