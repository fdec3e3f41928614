"""train_encoder.py - trains impetus-nano-embed, a BERT sentence encoder, within a time limit on one GPU.

Run:     python tools/train/train_encoder.py --data DIR/encoder.npz.xz --out OUT --seconds 170
Needs:   PyTorch 2.x with CUDA (without a GPU it runs, slowly: --tiny --steps 3 checks the code).
Writes:  encoder_0.npz, encoder_1.npz   f16 weights, halves of the dictionary
         encoder_check.npz              ids and this program's vectors, for check_export.py
         encoder.json                   hyperparameters, curve, measured quality
Idea:    InfoNCE both ways over groups of 1,024 pairs of one kind (so that the kind is no hint): neighbouring
         passages from a few documents each, halves of passages, titles with their text, and the corpus's pairs.
         Pairs with an equal label or text are no negatives of each other. A tenth of the words is masked.
Source:  Reimers and Gurevych 2019 (mean pooling); Karpukhin et al. 2020 (in-batch negatives).
"""
import argparse
import io
import json
import lzma
import math
import time

import numpy as np
import torch
import torch.nn.functional as F

START = time.time()
SEED = 20261122
PAD, UNK, CLS, SEP, MASK = range(5)
DEV = "cuda" if torch.cuda.is_available() else "cpu"
DT = torch.bfloat16 if DEV == "cuda" else torch.float32
compiled = getattr(torch, "compile", None) if DEV == "cuda" else None
compiled = compiled or (lambda f, **_: f)  # shapes repeat: one build for each

CFG = dict(vocab=10240, dim=384, layers=5, heads=12, ffn=1536, context=256, eps=1e-12)
# share of the groups; the passages' last number: how many passages make one text
SHARE = [("near", 1, 0.34), ("near", 2, 0.08), ("halves", 1, 0.10), ("titles", 1, 0.08),
         ("definition/example", 0, 0.03), ("heading/body", 0, 0.08), ("paraphrase", 0, 0.04), ("question/answer", 0, 0.08),
         ("same-intent", 0, 0.05), ("synonym", 0, 0.02), ("task/tool", 0, 0.03), ("term/definition", 0, 0.05),
         ("title/body", 0, 0.01), ("title/summary", 0, 0.01)]


def make_params(c, gen):
    d, f, n = c["dim"], c["ffn"], c["layers"]
    normal = lambda *s, std=0.02: torch.randn(*s, generator=gen) * std
    p = {"word": normal(c["vocab"], d), "pos": normal(c["context"], d), "type": normal(2, d),
         "ln0_w": torch.ones(d), "ln0_b": torch.zeros(d)}
    for name, (o, i) in dict(q=(d, d), k=(d, d), v=(d, d), o=(d, d), up=(f, d), down=(d, f)).items():
        p[name + "_w"], p[name + "_b"] = normal(n, o, i, std=0.6 / math.sqrt(i)), torch.zeros(n, o)
    for name in ("ln1", "ln2"):
        p[name + "_w"], p[name + "_b"] = torch.ones(n, d), torch.zeros(n, d)
    return {k: t.to(DEV).requires_grad_(True) for k, t in p.items()}


LAYER = ["q_w", "k_w", "v_w", "q_b", "k_b", "v_b", "o_w", "o_b", "ln1_w", "ln1_b", "up_w", "up_b", "down_w", "down_b",
         "ln2_w", "ln2_b"]


def norm(x, w, b):
    return F.layer_norm(x.float(), x.shape[-1:], w, b, CFG["eps"]).to(x.dtype)


def layer(x, mask, heads, drop, qw, kw, vw, qb, kb, vb, ow, ob, n1w, n1b, uw, ub, dw, db, n2w, n2b):
    b, t, d = x.shape
    qkv = F.linear(x, torch.cat([qw, kw, vw]), torch.cat([qb, kb, vb]))
    q, k, v = (z.reshape(b, t, heads, d // heads).transpose(1, 2) for z in qkv.split(d, -1))
    a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, t, d)
    a = F.linear(a, ow, ob)
    x = norm(x + (F.dropout(a, drop) if drop else a), n1w, n1b)
    h = F.linear(F.gelu(F.linear(x, uw, ub)), dw, db)
    return norm(x + (F.dropout(h, drop) if drop else h), n2w, n2b)


def first(ids, word, pos, typ, lw, lb):
    return norm(F.embedding(ids, word) + pos[:ids.shape[1]] + typ[0], lw, lb)


fast_layer, fast_first = compiled(layer, dynamic=False), compiled(first, dynamic=False)


def encode(w, heads, ids, drop=0.0, quick=True):
    """Unit vectors [b][dim] of padded ids [b][t]: the mean over what is not padding, f32."""
    real = ids != PAD
    mask = real[:, None, None, :]
    if quick:
        mask = torch.zeros(mask.shape, dtype=w["word"].dtype, device=ids.device).masked_fill(~mask, -30000.0)
        mask = mask.expand(-1, -1, ids.shape[1], -1)
    x = (fast_first if quick else first)(ids, w["word"], w["pos"], w["type"], w["ln0_w"], w["ln0_b"])
    for i in range(w["q_w"].shape[0]):
        x = (fast_layer if quick else layer)(x, mask, heads, drop, *[w[k][i] for k in LAYER])
    m = real.unsqueeze(-1).float()
    return F.normalize((x.float() * m).sum(1) / m.sum(1), dim=-1)


class Ragged:
    """Token lists of different length on the device."""

    def __init__(self, flat, off):
        self.flat = torch.from_numpy(flat.astype(np.int32)).to(DEV)
        self.off = torch.from_numpy(off.astype(np.int64)).to(DEV)

    def __len__(self):
        return len(self.off) - 1

    def rows(self, lo, hi, width):
        """[CLS] flat[lo..hi) [SEP] padded to width, cut where longer. lo, hi: token positions [n]."""
        hi = torch.minimum(hi, lo + (width - 2))
        j = torch.arange(width, device=DEV)[None] - 1
        at = lo[:, None] + j
        n = (hi - lo)[:, None]
        ids = self.flat[at.clamp(0, len(self.flat) - 1)].long()
        ids = torch.where((j >= 0) & (j < n), ids, torch.full_like(ids, PAD))
        ids = torch.where(j == n, torch.full_like(ids, SEP), ids)
        ids[:, 0] = CLS
        return ids

    def take(self, i, width, k=1):
        return self.rows(self.off[i], self.off[i + k], width)


class Data:
    def __init__(self, path, seed, group):
        z = np.load(io.BytesIO(lzma.open(path).read()))
        self.rng, self.group = np.random.default_rng(seed), group
        self.passages, self.titles = Ragged(z["p_flat"], z["p_off"]), Ragged(z["t_flat"], z["t_off"])
        self.doc, self.title_at = z["p_doc"], z["t_first"]
        self.valid = {k: np.flatnonzero(self.doc[:-2 * k + 1] == self.doc[2 * k - 1:]) for k in (1, 2)}
        self.kinds = {str(n): (Ragged(z[f"k{k}_a"], z[f"k{k}_aoff"]), Ragged(z[f"k{k}_b"], z[f"k{k}_boff"]), z[f"k{k}_key"])
                      for k, n in enumerate(z["names"])}
        self.sets = {s: [Ragged(z[f"{s}_{x}"], z[f"{s}_{x}off"]) for x in "ab"] for s in ("near", "held")}

    def near(self, n, k):
        """n pairs of neighbouring texts of k passages, 32 from each place in the corpus."""
        run = 32
        start = self.rng.integers(0, len(self.doc) - run * 4 * k - 2 * k, size=(n + run - 1) // run)
        i = (start[:, None] + np.arange(run) * 4 * k).reshape(-1)[:n]
        anywhere = self.valid[k][self.rng.integers(0, len(self.valid[k]), size=len(i))]
        i = np.where(self.doc[i] == self.doc[i + 2 * k - 1], i, anywhere)
        return torch.from_numpy(i).to(DEV)

    def sample(self, kind, k):
        """(ids a, ids b, key a, key b): equal keys are the same thing said twice; keys may be None."""
        n = self.group
        t = lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(DEV)
        if kind == "near":
            i = self.near(n // k, k)
            width = 64 * k
            return self.passages.take(i, width, k), self.passages.take(i + k, width, k), None, None
        if kind == "halves":
            i = t(self.rng.integers(0, len(self.passages), size=n))
            lo, hi = self.passages.off[i], self.passages.off[i + 1]
            mid = lo + ((hi - lo).float() * (0.3 + 0.4 * torch.rand(n, device=DEV))).long()
            return self.passages.rows(lo, mid, 64), self.passages.rows(mid, hi, 64), None, None
        if kind == "titles":
            j = self.rng.permutation(len(self.title_at))[:n]
            at = self.title_at[j, 0] + (self.rng.random(len(j)) ** 2 * self.title_at[j, 1]).astype(np.int64)
            return self.titles.take(t(j), 64), self.passages.take(t(at), 64), t(j), t(j)
        a, b, key = self.kinds[kind]
        j = self.rng.permutation(len(key))[:n] if len(key) < 4 * n else self.rng.integers(0, len(key), size=n)
        i = t(j)
        return a.take(i, 64), b.take(i, 64), t(key[j, 0]), t(key[j, 1])


def contrast(a, b, ka, kb, temp):
    """Symmetric InfoNCE of unit vectors; equal keys off the diagonal do not count."""
    s = a @ b.T / temp
    if ka is not None:
        same = (ka[:, None] == ka[None]) | (kb[:, None] == kb[None]) | (ka[:, None] == kb[None])
        s = s.masked_fill(same & ~torch.eye(len(a), dtype=torch.bool, device=s.device), -1e4)
    y = torch.arange(len(a), device=s.device)
    return (F.cross_entropy(s, y) + F.cross_entropy(s.T, y)) / 2


def masked(ids, share):
    hit = (torch.rand(ids.shape, device=ids.device) < share) & (ids > MASK)
    return torch.where(hit, torch.full_like(ids, MASK), ids)


@torch.no_grad()
def evaluate(p, c, data, most=10**6):
    """Top-1 of retrieval on the held-out sets: neighbours among all, pairs among groups of 1,000."""
    w, out = {k: t.detach().to(DT) if k[0] != "l" else t.detach() for k, t in p.items()}, {}
    for name, (a, b) in data.sets.items():
        va, vb = (torch.cat([encode(w, c["heads"], r.take(torch.arange(i, min(i + 500, len(r)), device=DEV), 128), quick=False)
                             for i in range(0, min(most, len(r)), 500)]) for r in (a, b))
        hits = 0
        for i in range(0, len(va), 1000):
            hits += int(((va[i:i + 1000] @ vb[i:i + 1000].T).argmax(1) == torch.arange(len(va[i:i + 1000]), device=DEV)).sum())
        out[name] = hits / len(va)
    return out


@torch.no_grad()
def export(p, c, data, out, info):
    z = {k: t.detach().half() for k, t in p.items()}
    names = sorted(z)
    for part in (0, 1):
        np.savez(f"{out}/encoder_{part}.npz", **{k: z[k].cpu().numpy() for k in names[part::2]})
    w = {k: t.float() for k, t in z.items()}
    ids = data.sets["near"][0].take(torch.arange(8, device=DEV), 128)
    vec = encode(w, c["heads"], ids, quick=False)
    np.savez_compressed(f"{out}/encoder_check.npz", ids=ids.cpu().numpy(), vectors=vec.cpu().numpy())
    json.dump(info, open(f"{out}/encoder.json", "w"), indent=1)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--data", required=True)
    a.add_argument("--out", required=True)
    a.add_argument("--seconds", type=float, default=170, help="from the program's start")
    a.add_argument("--groups", type=int, default=2, help="groups of pairs in a step")
    a.add_argument("--lr", type=float, default=8e-4)
    a.add_argument("--steps", type=int, default=10**9)
    a.add_argument("--tiny", action="store_true")
    o = a.parse_args()
    c = dict(CFG, dim=64, layers=2, heads=2, ffn=128) if o.tiny else CFG
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    p = make_params(c, torch.Generator().manual_seed(SEED))
    data = Data(o.data, SEED, 64 if o.tiny else 1024)
    matrices = [t for k, t in p.items() if t.dim() >= 2 and k[-2:] == "_w" and not k.startswith("ln")]
    rest = [t for t in p.values() if not any(t is m for m in matrices)]
    opt = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=o.lr,
                            betas=(0.9, 0.98), eps=1e-8)
    info = {"config": c, "params": sum(t.numel() for t in p.values()), "curve": []}
    print(f"{time.time() - START:.0f} s: {info['params'] / 1e6:.1f}M parameters, {len(data.passages)} passages, {DEV}", flush=True)
    share = np.array([s for _, _, s in SHARE])
    share /= share.sum()

    def step(kinds):
        w = {k: t.to(DT) if k[0] != "l" else t for k, t in p.items()}
        loss = 0
        for kind, k in kinds:
            x, y, kx, ky = data.sample(kind, k)
            v = encode(w, c["heads"], masked(torch.cat([x, y]), 0.1), 0.1)
            loss = loss + contrast(v[:len(x)], v[len(x):], kx, ky, 0.05) / len(kinds)
        loss.backward()
        return loss.detach()

    for kind in (("near", 1), ("near", 2), ("synonym", 0), ("title/body", 0)):
        step([kind])
    for t in p.values():
        t.grad = None
    if DEV == "cuda":
        torch.cuda.synchronize()
    t0, n, pairs, next_eval = time.time(), 0, 0, 0.1
    print(f"{t0 - START:.0f} s: compiled", flush=True)
    while n < o.steps:
        x = (time.time() - t0) / (o.seconds - (t0 - START)) if o.steps > 10**8 else n / o.steps
        if x >= 1:
            break
        for g in opt.param_groups:
            g["lr"] = o.lr * (min(1, x / 0.05 + 0.01) if x < 0.4 else max(0.02, 1 - (x - 0.4) / 0.6))
        loss = step([SHARE[i][:2] for i in data.rng.choice(len(SHARE), size=o.groups, p=share)])
        torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        n, pairs = n + 1, pairs + o.groups * data.group
        if n % 5 == 0:
            float(loss)
        if x >= next_eval:
            info["curve"].append({"progress": round(x, 3), "step": n, "loss": float(loss), **evaluate(p, c, data, 500 if o.tiny else 10**6)})
            print(f"{time.time() - START:.0f} s: {info['curve'][-1]}", flush=True)
            next_eval += 0.1
    info |= {"steps": n, "pairs": pairs, "seconds of training": time.time() - t0, "groups a step": o.groups,
             "device": torch.cuda.get_device_name() if DEV == "cuda" else "cpu"}
    torch.set_float32_matmul_precision("highest")
    info["held out"] = evaluate(p, c, data, 500 if o.tiny else 10**6)
    export(p, c, data, o.out, info)
    print(json.dumps({k: v for k, v in info.items() if k != "curve"}), f"{time.time() - START:.0f} s: done", flush=True)


if __name__ == "__main__":
    main()
