"""Chat templates of models whose original code builds its prompts by hand, as the Jinja that stock tokenizers take."""

from __future__ import annotations

_GENERATE = "{% if add_generation_prompt %}"

QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% endfor %}" + _GENERATE + "{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML with the original's default system message."""

CHATGLM2_TEMPLATE = (
    "{{ '[gMASK]<sop>' }}"
    "{% set counter = namespace(round=0) %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}"
    "{% set counter.round = counter.round + 1 %}"
    "{{ '[Round ' + counter.round|string + ']\\n\\n问：' + message['content'] + '\\n\\n答：' }}"  # noqa: RUF001
    "{% elif message['role'] == 'assistant' %}"
    "{{ message['content'] + '\\n\\n' }}"
    "{% else %}{{ raise_exception('ChatGLM2 knows the roles user and assistant only') }}{% endif %}"
    "{% endfor %}"
)
"""Rounds of question and answer; the answer's mark stands behind each question as it is."""

CHATGLM3_TEMPLATE = (
    "{{ '[gMASK]<sop>' }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message.get('metadata', '') + '\\n ' + message['content'] }}"
    "{% endfor %}" + _GENERATE + "{{ '<|assistant|>' }}{% endif %}"
)
"""The space stands for the one that the original gets by encoding each message on its own."""


def baichuan_template(user: str, assistant: str) -> str:
    """Messages behind the tokens that Baichuan keeps for the two roles.

    Args:
        user: the token for what the user says.
        assistant: the token for what the model says.
    """
    return (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ message['content'] }}"
        f"{{% elif message['role'] == 'user' %}}{{{{ '{user}' + message['content'] }}}}"
        f"{{% elif message['role'] == 'assistant' %}}{{{{ '{assistant}' + message['content'] }}}}"
        "{% else %}{{ raise_exception('Baichuan knows the roles system, user and assistant only') }}{% endif %}"
        f"{{% endfor %}}{_GENERATE}{{{{ '{assistant}' }}}}{{% endif %}}"
    )


def internlm_template(*, has_eoh: bool) -> str:
    """The rounds of InternLM's first generation.

    Args:
        has_eoh: whether `<eoh>` stands behind a question; early and late code differ.
    """
    end = "<eoh>" if has_eoh else ""
    return (
        "{{ bos_token }}"
        "{% for message in messages %}"
        f"{{% if message['role'] == 'user' %}}{{{{ '<|User|>:' + message['content'] + '{end}\\n' }}}}"
        "{% elif message['role'] == 'assistant' %}{{ '<|Bot|>:' + message['content'] + '<eoa>\\n' }}"
        "{% elif message['role'] == 'system' %}{{ '<|System|>:' + message['content'] + '\\n' }}"
        "{% else %}{{ raise_exception('InternLM knows the roles system, user and assistant only') }}{% endif %}"
        f"{{% endfor %}}{_GENERATE}{{{{ '<|Bot|>:' }}}}{{% endif %}}"
    )
