"""The chat format: messages become prompt ids, response ids become text, and we know which ids end a turn.

In: a tokenizer with a chat template, and the end ids of the model's generation config. Out: token ids without padding.
All text that goes in is treated as text: a control token that is merely spelled out in a message or in a response
(``<|im_end|>`` written by a user or by the model) never becomes the control token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from selfdistill.errors import DataError, ModelError
from selfdistill.questions.question import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "PROBE"
"""Content of the assistant turn that shows what the template writes after a turn."""


class ChatFormat:
    """Renders prompts with a tokenizer's chat template.

    Args:
        tokenizer: a transformers tokenizer that has a chat template.
        generation_eos: ``eos_token_id`` of the model's generation config: an id, several, or None.

    Raises:
        ModelError: the tokenizer has no chat template, or nothing that could end an assistant turn.
    """

    end_of_turn_ids: tuple[int, ...]
    """All ids that end an assistant turn: first the template's own, the tokenizer's and the generation config's."""
    pad_id: int
    """Fills a batch; always masked, so that an id which also ends turns does no harm."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, generation_eos: Sequence[int] | int | None = ()) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template; use an instruction-tuned model's "
                "tokenizer, or put a chat_template.jinja into the model's folder"
            )
        self.tokenizer = tokenizer
        specials = _special_tokens(tokenizer)
        self._spelled_out = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or r"(?!)")
        self.end_of_turn_ids = tuple(dict.fromkeys(self._find_ends(set(specials.values()), generation_eos)))
        if not self.end_of_turn_ids:
            raise ModelError(
                f"nothing ends an assistant turn for the tokenizer {tokenizer.name_or_path!r}; "
                "set eos_token in its tokenizer_config.json or eos_token_id in the model's generation_config.json"
            )
        pad = cast("int | None", tokenizer.pad_token_id)
        self.pad_id = self.end_of_turn_ids[0] if pad is None else pad

    @property
    def has_thinking_switch(self) -> bool:
        """Whether the template reads ``enable_thinking``; without it, ``thinking`` changes nothing."""
        return "enable_thinking" in str(self.tokenizer.chat_template)

    def render(self, messages: Sequence[Message], *, thinking: bool | None = None) -> tuple[int, ...]:
        """Return the ids of the conversation with the header of the assistant's turn, no padding.

        ``thinking`` is handed to the template as ``enable_thinking``; None leaves the template's default.

        Raises:
            DataError: the template refuses the messages (for example a role that it does not know).
        """
        ids = self._apply(messages, thinking=thinking, add_generation_prompt=True, tokenize=True)
        return tuple(cast("list[int]", ids))

    def render_with_response(
        self, messages: Sequence[Message], response: str, *, thinking: bool | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return prompt ids, equal to :meth:`render`'s, and the response's own ids closed by the template's turn end.

        The response is encoded alone, so that both parts join exactly as they do after sampling.
        """
        return self.render(messages, thinking=thinking), (*self.encode(response), self.end_of_turn_ids[0])

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text: nothing is added, and spelled-out control tokens stay text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of ``ids``."""
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return cast(str, text)

    def _apply(
        self, messages: Sequence[Message], *, thinking: bool | None, add_generation_prompt: bool, tokenize: bool
    ) -> str | list[int]:
        from jinja2.exceptions import TemplateError

        switch: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        conversation = [{**message, "content": self._as_text(message["content"])} for message in messages]
        try:
            rendered = self.tokenizer.apply_chat_template(
                conversation,
                add_generation_prompt=add_generation_prompt,
                tokenize=tokenize,
                return_dict=False,
                **switch,
            )
        except (TemplateError, ValueError) as error:
            roles = ", ".join(message.get("role", "?") for message in messages) or "none"
            raise DataError(
                f"the chat template refuses messages with the roles {roles}: {error}; change the prompt column"
            ) from error
        return cast("str | list[int]", rendered)

    def _as_text(self, content: str) -> str:
        """Break control tokens that are spelled out in ``content`` by a space after their first character."""
        return self._spelled_out.sub(lambda match: f"{match[0][:1]} {match[0][1:]}", content)

    def _find_ends(self, special_ids: set[int], generation_eos: Sequence[int] | int | None) -> Iterator[int]:
        yield from self._template_ends(special_ids)
        if self.tokenizer.eos_token_id is not None:
            yield cast(int, self.tokenizer.eos_token_id)
        listed = (generation_eos,) if isinstance(generation_eos, int) else generation_eos or ()
        yield from (int(token) for token in listed if token >= 0)

    def _template_ends(self, special_ids: set[int]) -> Iterable[int]:
        """Return the first control token that the template writes after an assistant turn, if there is one."""
        conversation = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
        text = cast(str, self._apply(conversation, thinking=None, add_generation_prompt=False, tokenize=False))
        _, _, after = text.rpartition(_PROBE)
        ids = self.tokenizer.encode(after, add_special_tokens=False)
        return [token for token in ids if token in special_ids][:1]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return every control token: the named ones, and those that were added as special."""
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    added = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {token: index for token, index in {**named, **added}.items() if token and index is not None}
