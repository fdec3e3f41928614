#!/usr/bin/env python3
"""Chat and completions through the official openai client: its own types must accept what the server answers."""
import json

import openai

from impetus import ROOT, Server
from tap import attempt, done, ok

MODEL = "stories260K"
STORY = ", there was a little girl named Lily. She loved to play outside in the park."


def completions(client):
    ask = dict(model=MODEL, prompt="Once upon a time", max_tokens=60, temperature=0)
    whole = client.completions.create(**ask)
    text = whole.choices[0].text
    ok(text.startswith(STORY) and whole.usage.completion_tokens == 60, "completion")
    streamed = "".join(e.choices[0].text for e in client.completions.create(stream=True, **ask))
    ok(streamed == text, "streamed completion")
    both = client.completions.create(**dict(ask, prompt=["Once upon a time", "Lily"], n=2, echo=True))
    ok([c.index for c in both.choices] == [0, 1, 2, 3] and both.choices[1].text == "Once upon a time" + text, "n and echo")
    probs = client.completions.create(**dict(ask, max_tokens=5, logprobs=3)).choices[0].logprobs
    ok("".join(probs.tokens) == text[:len("".join(probs.tokens))] and len(probs.top_logprobs) == 5, "logprobs of a completion")


def chat(client):
    ask = dict(model=MODEL, messages=[{"role": "user", "content": "Tell a story"}], max_tokens=12, temperature=0)
    whole = client.chat.completions.create(logprobs=True, top_logprobs=2, **ask)
    entries = whole.choices[0].logprobs.content
    ok(len(entries) == 12 and all(len(e.top_logprobs) == 2 and e.logprob == e.top_logprobs[0].logprob for e in entries),
       "chat with logprobs", "the greedy token is the likeliest")
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    ok(text == whole.choices[0].message.content, "streamed chat")
    ok(chunks[-1].usage.total_tokens == whole.usage.total_tokens and chunks[-2].choices[0].finish_reason == "length", "usage at the end of a stream")


def structured(client):
    ask = dict(model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=200, seed=3)
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}, "s": {"enum": ["a", "b"]}},
              "required": ["n", "s"], "additionalProperties": False}
    a = client.chat.completions.create(**ask, response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}})
    got = json.loads(a.choices[0].message.content)
    ok(set(got) == {"n", "s"} and 1 <= got["n"] <= 9 and got["s"] in ("a", "b"), "a JSON schema is kept to", a.choices[0].message.content)
    stream = client.chat.completions.create(**ask, stream=True, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    ok(text == a.choices[0].message.content, "streamed, it is the same", text)
    a = client.chat.completions.create(**ask, response_format={"type": "json_object"}, temperature=0)
    ok(isinstance(json.loads(a.choices[0].message.content), dict) or a.choices[0].finish_reason == "length", "a JSON object", a.choices[0].message.content[:80])


def refusals(client):
    ask = dict(model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=2)
    tool = {"type": "function", "function": {"name": "f"}}
    for extra, kind, param in [({"tools": [tool]}, openai.BadRequestError, "tools"), ({"model": "none"}, openai.NotFoundError, "model"),
                               ({"temperature": 3}, openai.BadRequestError, "temperature"),
                               ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
                                openai.BadRequestError, "response_format")]:
        try:
            client.chat.completions.create(**{**ask, **extra})
            ok(False, f"{param} is refused")
        except kind as e:
            ok(e.param == param, f"{param} is refused", e.message)


with Server(ROOT / "models" / "stories260K.gguf") as server:
    c = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    attempt("models", lambda: ok([m.id for m in c.models.list()] == [MODEL] and c.models.retrieve(MODEL).id == MODEL, "models"))
    attempt("completions", completions, c)
    attempt("chat", chat, c)
    attempt("structured", structured, c)
    attempt("refusals", refusals, c)
done()
