"""gguf_common.py - what both exporters share: metadata and vocabularies."""
import json

import gguf

LICENCE = "cc-by-sa-4.0"
TYPES = {"normal": 1, "unknown": 2, "control": 3, "user": 4}


def writer(path, arch, name, file_type):
    w = gguf.GGUFWriter(path, arch)
    w.add_name(name)
    w.add_license(LICENCE)
    w.add_description("Trained from scratch for Impetus; see the model card beside it")
    w.add_file_type(file_type)
    w.add_quantization_version(2)
    return w


def vocabulary(path):
    """(tokenizer.json as a dict, tokens in the order of their ids)."""
    j = json.load(open(path))
    by = {i: t for t, i in j["model"]["vocab"].items()} | {a["id"]: a["content"] for a in j["added_tokens"]}
    return j, [by[i] for i in range(len(by))]


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
