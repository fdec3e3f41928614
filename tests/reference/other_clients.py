"""Chat and text through the official `anthropic` and `ollama` clients: their own types must accept what the server answers."""
import anthropic
import ollama

from impetus import ROOT, Server
from tap import attempt, done, ok

MODEL = "impetus-nano"
ASK = [{"role": "user", "content": "Tell me a story."}]


def anthropic_client(url):
    c = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    m = c.messages.create(model=MODEL, max_tokens=12, messages=ASK, system="Be brief.")
    ok(m.type == "message" and m.content[0].type == "text" and m.usage.output_tokens == 12 and m.stop_reason == "max_tokens", "anthropic: a message", m.content[0].text)
    with c.messages.stream(model=MODEL, max_tokens=12, messages=ASK) as s:
        text = "".join(s.text_stream)
        whole = s.get_final_message()
    ok(text == whole.content[0].text and whole.usage.output_tokens > 0, "anthropic: a stream", text)
    n = c.messages.count_tokens(model=MODEL, messages=ASK, system="Be brief.").input_tokens
    ok(n == m.usage.input_tokens + (m.usage.cache_read_input_tokens or 0), "anthropic: tokens are counted alike", str(n))
    try:
        c.messages.create(model="none", max_tokens=1, messages=ASK)
        ok(False, "anthropic: an unknown model")
    except anthropic.NotFoundError as e:
        ok(e.body["error"]["type"] == "not_found_error", "anthropic: an unknown model", e.message[:80])


def ollama_client(url):
    c = ollama.Client(url)
    options = {"num_predict": 12, "temperature": 0}
    m = c.chat(MODEL, ASK, options=options)
    ok(m.done and m.message.role == "assistant" and m.eval_count == 12 and m.done_reason == "length", "ollama: a chat", m.message.content)
    text = "".join(p.message.content for p in c.chat(MODEL, ASK, stream=True, options=options))
    ok(text == m.message.content, "ollama: a stream", text)
    g = c.generate(MODEL, ASK[0]["content"], options=options)
    ok(g.response == m.message.content, "ollama: generate", g.response)
    j = c.generate(MODEL, "x", format={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    ok(j.response.startswith("{"), "ollama: a format", j.response)
    ok(len(c.embed("impetus-nano-embed", ["a", "b"]).embeddings) == 2, "ollama: embeddings")
    ok({m.model for m in c.list().models} == {MODEL, "impetus-nano-embed"}, "ollama: the list of models")
    s = c.show(MODEL)
    ok(s.details.format == "gguf" and s.modelinfo["llama.context_length"] == 1024 and s.capabilities == ["completion", "tools"], "ollama: show")
    ok({m.model for m in c.ps().models} == {MODEL, "impetus-nano-embed"}, "ollama: ps")
    try:
        c.chat("none", ASK)
        ok(False, "ollama: an unknown model")
    except ollama.ResponseError as e:
        ok(e.status_code == 404, "ollama: an unknown model", e.error)


with Server(ROOT / "models" / "impetus-nano.gguf", ROOT / "models" / "impetus-nano-embed.gguf") as server:
    attempt("anthropic", anthropic_client, server.url)
    attempt("ollama", ollama_client, server.url)
done()
