"""The tiny tokenizer with chat templates of the usual shapes."""

import functools

from tiny_text import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)


@functools.cache
def chat_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """`LLAMA` also adds its beginning-of-text token to whatever is tokenised with special tokens, as Llama's do."""
    from tokenizers import Tokenizer, processors

    inner = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    if template == CHATML:
        inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", chat_template=template)
    inner.add_special_tokens(["<|begin|>", "<|head|>", "<|/head|>", "<|eot|>"])
    begin = inner.token_to_id("<|begin|>")
    inner.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|begin|>", eos_token="<|eot|>", chat_template=template
    )
