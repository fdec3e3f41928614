#!/usr/bin/env python3
"""Tools and responses through the official openai, anthropic and ollama clients, and what models that must call a tool write:
every call is of a declared tool with arguments that its schema takes, as the jsonschema package says."""
import json
import random

import anthropic
import jsonschema
import ollama
import openai

from impetus import ROOT, Server
from tap import attempt, done, ok

MODEL = "impetus-nano"
PARAMS = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 9},
                                           "unit": {"enum": ["C", "F"]}}, "required": ["city", "unit"], "additionalProperties": False}
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]
FUNCTION = {"name": "get_weather", "description": "The weather of a place", "parameters": PARAMS}


def valid(args):
    jsonschema.validate(args, PARAMS)
    return True


def openai_client(url):
    c = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    ask = dict(model=MODEL, messages=ASK, max_tokens=300, seed=1, tools=[{"type": "function", "function": FUNCTION}], tool_choice="required", parallel_tool_calls=False)
    a = c.chat.completions.create(**ask).choices[0]
    call = a.message.tool_calls[0]
    ok(a.finish_reason == "tool_calls" and call.function.name == "get_weather" and valid(json.loads(call.function.arguments)), "openai: a call", call.function.arguments)
    with c.chat.completions.stream(**ask) as s:
        for _ in s:
            pass
        whole = s.get_final_completion().choices[0]
    again = whole.message.tool_calls[0].function
    ok((again.name, again.arguments) == (call.function.name, call.function.arguments) and whole.finish_reason == "tool_calls", "openai: the same call while it streams", again.arguments)
    talk = ASK + [a.message, {"role": "tool", "tool_call_id": call.id, "content": "9 degrees"}]
    b = c.chat.completions.create(**dict(ask, messages=talk, tool_choice="none", max_tokens=12)).choices[0]
    ok(b.message.tool_calls is None and b.message.content, "openai: an answer to a result", b.message.content)
    named = c.chat.completions.create(**dict(ask, tools=ask["tools"] + [{"type": "function", "function": {"name": "now"}}], tool_choice={"type": "function", "function": {"name": "now"}}))
    ok(named.choices[0].message.tool_calls[0].function.name == "now" and json.loads(named.choices[0].message.tool_calls[0].function.arguments) == {}, "openai: a named tool")
    free = c.chat.completions.create(**dict(ask, tool_choice="auto", max_tokens=20)).choices[0]
    ok(free.message.content or free.message.tool_calls, "openai: auto", str(free.message.content))


def responses(url):
    c = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    r = c.responses.create(model=MODEL, input="Hello there", instructions="Be brief.", max_output_tokens=20, temperature=0)
    ok(r.status == "completed" and r.output_text and r.usage.output_tokens > 0, "responses: text", r.output_text)
    n = c.responses.create(model=MODEL, input="And you?", previous_response_id=r.id, max_output_tokens=20)
    ok(n.usage.input_tokens > r.usage.input_tokens and c.responses.retrieve(r.id).output_text == r.output_text, "responses: one after another, and fetched")
    c.responses.delete(r.id)
    try:
        c.responses.retrieve(r.id)
        ok(False, "responses: deleted")
    except openai.NotFoundError:
        ok(True, "responses: deleted")
    tool = {"type": "function", "strict": True, **FUNCTION}
    with c.responses.stream(model=MODEL, input="Weather?", tools=[tool], tool_choice="required", parallel_tool_calls=False, max_output_tokens=300) as s:
        names = [e.type for e in s]
        f = s.get_final_response()
    ok(names[0] == "response.created" and names[-1] == "response.completed" and valid(json.loads(f.output[0].arguments)), "responses: a call while it streams", f.output[0].arguments)
    b = c.responses.create(model=MODEL, previous_response_id=f.id, tools=[tool], tool_choice="none", max_output_tokens=12,
                           input=[{"type": "function_call_output", "call_id": f.output[0].call_id, "output": "9 degrees"}])
    ok(b.output_text, "responses: an answer to a result", b.output_text)
    j = c.responses.create(model=MODEL, input="x", text={"format": {"type": "json_schema", "name": "a", "schema": PARAMS, "strict": True}})
    ok(valid(json.loads(j.output_text)), "responses: a schema", j.output_text)


def anthropic_client(url):
    c = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    ask = dict(model=MODEL, max_tokens=300, messages=ASK, tools=[{"name": "get_weather", "description": "d", "input_schema": PARAMS}], tool_choice={"type": "any", "disable_parallel_tool_use": True})
    m = c.messages.create(**ask)
    ok(m.stop_reason == "tool_use" and m.content[-1].name == "get_weather" and valid(m.content[-1].input), "anthropic: a call", str(m.content[-1].input))
    with c.messages.stream(**ask) as s:
        for _ in s:
            pass
        f = s.get_final_message()
    ok(f.stop_reason == "tool_use" and valid(f.content[-1].input), "anthropic: a call while it streams", str(f.content[-1].input))
    talk = ASK + [{"role": "assistant", "content": m.content}, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": m.content[-1].id, "content": "9 degrees"}]}]
    b = c.messages.create(**dict(ask, messages=talk, tool_choice={"type": "none"}, max_tokens=12))
    ok(b.content[0].type == "text", "anthropic: an answer to a result", b.content[0].text)


def ollama_client(url):
    c = ollama.Client(url)
    tool = {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}}
    talk = ASK + [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}, {"role": "tool", "tool_name": "now", "content": "noon"}]
    m = c.chat(MODEL, talk, tools=[tool], options={"num_predict": 12})
    ok(m.message.content or m.message.tool_calls, "ollama: tools and a result", m.message.content)
    ok("tools" in c.show(MODEL).capabilities, "ollama: the model says that it takes tools")
    ok(c.generate(MODEL).done_reason == "load", "ollama: load")


def random_schema(r, depth=2):
    kind = r.choice(["string", "integer", "number", "boolean", "enum", "array", "object"] if depth else ["string", "integer", "boolean", "enum"])
    if kind == "string":
        return {"type": "string", "maxLength": r.randint(1, 8)}
    if kind == "integer":
        low = r.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + r.randint(0, 90)}
    if kind == "number":
        return {"type": "number", "minimum": 0, "maximum": 10}
    if kind == "enum":
        return {"enum": r.sample(["a", 1, None, True, "b c", "\u00fc", [1], {"x": 1}], 3)}
    if kind == "array":
        return {"type": "array", "items": random_schema(r, depth - 1), "maxItems": 2}
    if kind == "object":
        return random_object(r, depth - 1)
    return {"type": kind}


def random_object(r, depth=2):
    names = r.sample(["a", "b_1", "long name", "\u00e9t\u00e9", "x"], r.randint(0, 3))
    return {"type": "object", "properties": {n: random_schema(r, depth) for n in names}, "required": [n for n in names if r.random() < 0.6], "additionalProperties": False}


def schemas(url):
    c = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    r, n_call, n_cut, wrong = random.Random(5), 0, 0, []
    for i in range(200):
        tools = {f"tool_{k}": random_object(r) for k in range(r.randint(1, 3))}
        a = c.chat.completions.create(model=MODEL, messages=ASK, max_tokens=400, seed=i, temperature=1, tool_choice="required",
                                      parallel_tool_calls=i % 2 == 0,
                                      tools=[{"type": "function", "function": {"name": k, "parameters": v}} for k, v in tools.items()]).choices[0]
        n_cut += a.finish_reason == "length"
        for call in a.message.tool_calls or []:
            try:
                jsonschema.validate(json.loads(call.function.arguments), tools[call.function.name])
                n_call += 1
            except Exception as e:
                wrong.append((call.function.name, call.function.arguments, str(e)[:80]))
        if a.finish_reason == "tool_calls" and i % 2 and len(a.message.tool_calls) != 1:
            wrong.append("more than one call")
    ok(not wrong and n_call >= 150, f"200 requests that must call: {n_call} calls, all valid; {n_cut} cut off at their limit", str(wrong[:2]))


with Server(ROOT / "models" / "impetus-nano.gguf") as server:
    for name, run in [("openai", openai_client), ("responses", responses), ("anthropic", anthropic_client), ("ollama", ollama_client)]:
        attempt(name, run, server.url)
    attempt("schemas", lambda url: schemas(url), server.url)
done()
