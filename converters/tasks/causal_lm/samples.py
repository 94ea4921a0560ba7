"""What a language model is asked in its proof: passages to score, prompts to continue, texts to
tokenize, conversations to render."""

from converters.tasks.text.samples import default_texts, multilingual_texts

PASSAGES = 16
_SENTENCES = 5  # to a passage: about 60 tokens
STEPS = 24  # tokens that each prompt is continued by

COMBINED = "e\u0301migre\u0301"  # accents as characters of their own: not in NFC

# Of different lengths; the last two have short answers, which end by themselves.
QUESTIONS = (
    "Where is my parcel?",
    "Name three fruits.",
    "Write one sentence about the sea.",
    "My laptop does not start. What should I check first? It was bought in March, it was dropped "
    "once, and the light beside the charger is green.",
    "What is 2 + 2?",
    "Translate to French: good morning.",
    "What is the capital of France? Answer in one word.",
    "Reply with exactly one word: yes",
)

_TOOL = {
    "type": "function",
    "function": {
        "name": "order_status",
        "description": "The status of an order",
        "parameters": {
            "type": "object",
            "properties": {"order": {"type": "string"}},
            "required": ["order"],
        },
    },
}
_CALL = {"type": "function", "function": {"name": "order_status", "arguments": {"order": "17"}}}


def passages(texts: list[str]) -> list[str]:
    """Consecutive sentences joined, so that most tokens have a context."""
    starts = range(0, min(len(texts), PASSAGES * _SENTENCES), _SENTENCES)
    return [" ".join(texts[start : start + _SENTENCES]) for start in starts]


def default_passages() -> list[str]:
    return passages(default_texts(PASSAGES * _SENTENCES))


def token_texts() -> list[str]:
    """Texts on which tokenizers disagree first: spaces, digits, scripts, emoji."""
    return [
        *multilingual_texts(),
        "Where is my parcel?",
        "  two  spaces\n\n\n tab\t and a line end\r\n",
        "don't I'LL we've 12345 1,234.5 3rd x86_64",
        "def f(x):\n    return x ** 2  # quadrat",
        "中文 包裹在哪里",
        "🙂👩‍👩‍👧 émigré naïve ﬁ",
        "ALL CAPS camelCase snake_case kebab-case",
        COMBINED,
        "\u200b zero width, \u00a0 no-break",
    ]


def conversations() -> list[dict[str, object]]:
    """``messages``, and ``tools`` where there are some."""
    user = {"role": "user", "content": "Where is my parcel?"}
    reply = {"role": "assistant", "content": "It is on its way."}
    return [
        {"messages": [user]},
        {"messages": [{"role": "system", "content": "Be brief."}, user]},
        {"messages": [user, reply, {"role": "user", "content": "Since when?"}]},
        {
            "messages": [
                {"role": "user", "content": "  spaces, \n lines\n and <b>&amp;</b> 中文 🙂 "}
            ]
        },
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [user, reply]},
        {"messages": [{"role": "system", "content": "Only a system message."}]},
        {"messages": [user], "tools": [_TOOL]},
        {
            "messages": [
                user,
                {"role": "assistant", "content": "", "tool_calls": [_CALL]},
                {"role": "tool", "content": '{"status": "sent"}'},
            ],
            "tools": [_TOOL],
        },
    ]
