"""train_decoder.py - trains impetus-nano, a Llama of 26M parameters, within a time limit on one GPU.

Run:     python tools/train/train_decoder.py --data DIR/decoder.npz.xz --out OUT --seconds 290
Needs:   PyTorch 2.x with CUDA (without a GPU it runs, slowly: --tiny --steps 3 checks the code).
Writes:  decoder_q4.npz      the matrices as Q4_K codes (what the 4-bit file holds, exactly)
         decoder_f16.npz     embeddings and norms
         decoder_logits.npz  ids and this program's logits, for check_export.py
         decoder.json        hyperparameters, curve, measured quality
Idea:    weights of a kind are one stacked tensor [layer][out][in]: one Newton-Schulz iteration and one rounding
         for all layers. Matrices by Muon, the rest by Adam. The last part of the training runs on weights rounded
         to Q4_K with a straight-through gradient; chats join it, with loss on the answers only.
Always:  progress is time used over time allowed, so that any GPU ends its schedule in time.
Source:  Touvron et al. 2023 (Llama); Jordan et al. 2024 (Muon); Hu et al. 2024 (constant rate, then decay).
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

import kquant

START = time.time()
LOSS, SEED = 0x8000, 20261122
DEV = "cuda" if torch.cuda.is_available() else "cpu"
DT = torch.bfloat16 if DEV == "cuda" else torch.float32
compiled = getattr(torch, "compile", None) if DEV == "cuda" else None
compiled = compiled or (lambda f, **_: f)

CFG = dict(vocab=8192, dim=512, layers=8, heads=8, kv_heads=4, ffn=1280, context=1024, rope=10000.0, eps=1e-5)
KINDS = ["q", "k", "v", "o", "gate", "up", "down"]


def make_params(c, gen):
    d, h = c["dim"], c["dim"] // c["heads"]
    kv, f, n = c["kv_heads"] * h, c["ffn"], c["layers"]
    shape = dict(q=(d, d), k=(kv, d), v=(kv, d), o=(d, d), gate=(f, d), up=(f, d), down=(d, f))
    p = {"emb": torch.randn(c["vocab"], d, generator=gen) * 0.02}
    for k, (r, i) in shape.items():
        std = 0.5 / math.sqrt(i) / (math.sqrt(2 * n) if k in ("o", "down") else 1)
        p[k] = torch.randn(n, r, i, generator=gen) * std
    p["norm1"], p["norm2"], p["norm"] = torch.ones(n, d), torch.ones(n, d), torch.ones(d)
    return {k: t.to(DEV).requires_grad_(True) for k, t in p.items()}


def rms(x, w, eps=CFG["eps"]):
    y = x.float()
    return (y * torch.rsqrt((y * y).mean(-1, keepdim=True) + eps) * w.float()).to(x.dtype)


def rope(x, cos, sin):
    """x: [b][head][t][64]; neighbouring elements are one rotated pair."""
    y = x.float().reshape(*x.shape[:-1], -1, 2)
    a, b = y[..., 0], y[..., 1]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape).to(x.dtype)


def block(x, n1, n2, wq, wk, wv, wo, wg, wu, wd, cos, sin, drop):
    b, t, d = x.shape
    hd = cos.shape[-1] * 2
    nq, nk = wq.shape[0] // hd, wk.shape[0] // hd
    qkv = F.linear(rms(x, n1), torch.cat([wq, wk, wv]))
    q, k, v = (z.reshape(b, t, -1, hd).transpose(1, 2) for z in qkv.split([nq * hd, nk * hd, nk * hd], -1))
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    k, v = k.repeat_interleave(nq // nk, 1), v.repeat_interleave(nq // nk, 1)
    a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d)
    a = F.linear(a, wo)
    x = x + (F.dropout(a, drop) if drop else a)
    h = rms(x, n2)
    h = F.linear(F.silu(F.linear(h, wg)) * F.linear(h, wu), wd)
    return x + (F.dropout(h, drop) if drop else h)


def head_loss(x, norm, emb, labels):
    logits = F.linear(rms(x, norm), emb).float()
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100)


fast_block, fast_loss = compiled(block, dynamic=False), compiled(head_loss, dynamic=False)


def ste(w):
    return w + (kquant.round_q4k(torch, w)[0] - w).detach()


fast_ste = compiled(ste, dynamic=False)


def angles(c):
    half = c["dim"] // c["heads"] // 2
    f = c["rope"] ** (-torch.arange(half, dtype=torch.float64) / half)
    a = torch.arange(c["context"], dtype=torch.float64)[:, None] * f
    return a.cos().float().to(DEV), a.sin().float().to(DEV)


def weights(p, rounded, dtype, quick=True):
    """The weights a forward pass uses: dict of kind -> list over layers, embeddings and norms."""
    rnd = (fast_ste if quick else ste) if rounded else (lambda w: w)
    w = {k: rnd(p[k]).to(dtype).unbind(0) for k in KINDS}
    w |= {k: p[k].unbind(0) for k in ("norm1", "norm2")}
    return w | {"emb": p["emb"].to(dtype), "norm": p["norm"]}


def trunk(w, ids, cos, sin, drop=0.0, quick=True):
    x = F.embedding(ids, w["emb"])
    if drop:
        x = F.dropout(x, drop)
    t = ids.shape[1]
    f = fast_block if quick else block
    for i in range(len(w["q"])):
        x = f(x, w["norm1"][i], w["norm2"][i], *[w[k][i] for k in KINDS], cos[:t], sin[:t], drop)
    return x


def orthogonal(g):
    """Newton-Schulz: the nearest (semi-)orthogonal matrices, roughly. g: [layer][r][c]."""
    x = g.to(DT)
    flip = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if flip else x
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.transpose(1, 2) if flip else x).float()


class Optimizer:
    def __init__(self, p, lr_matrix, lr_rest, decay):
        self.p, self.lr, self.decay = p, (lr_matrix, lr_rest), decay
        self.m = {k: torch.zeros_like(t) for k, t in p.items() if k in KINDS}
        rest = [{"params": [p["emb"]], "weight_decay": 0.02}, {"params": [p[k] for k in ("norm1", "norm2", "norm")]}]
        self.adam = torch.optim.AdamW(rest, lr=lr_rest, betas=(0.9, 0.97), eps=1e-9, weight_decay=0.0)

    @torch.no_grad()
    def step(self, rate, momentum):
        for k in KINDS:
            w, g, m = self.p[k], self.p[k].grad, self.m[k]
            m.mul_(momentum).add_(g, alpha=1 - momentum)
            u = orthogonal(g * (1 - momentum) + m * momentum)
            w.mul_(1 - rate * self.lr[0] * self.decay)
            w.add_(u, alpha=-rate * self.lr[0] * max(1, w.shape[1] / w.shape[2]) ** 0.5)
            w.grad = None
        for g in self.adam.param_groups:
            g["lr"] = self.lr[1] * rate
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


class Data:
    def __init__(self, path, seed, t):
        z = np.load(io.BytesIO(lzma.open(path).read()))
        put = lambda n: torch.from_numpy(z[n].astype(np.int32)).to(DEV)
        self.train, self.chat, self.val_chat = put("train"), put("chat"), put("val_chat")
        self.val = {"books": put("val_books"), "articles": put("val_articles")}
        self.t, self.rng, self.order, self.chat_order, self.epochs = t, np.random.default_rng(seed), [], [], 0.0

    def rows(self, n):
        while len(self.order) < n:
            first = int(self.rng.integers(self.t))
            starts = np.arange(first, len(self.train) - self.t - 1, self.t)
            self.order = np.concatenate([self.order, self.rng.permutation(starts)]).astype(np.int64)
        take, self.order = self.order[:n], self.order[n:]
        self.epochs += n * self.t / len(self.train)
        i = torch.from_numpy(take).to(DEV)[:, None] + torch.arange(self.t + 1, device=DEV)
        x = self.train[i].long()
        return x[:, :-1], x[:, 1:]

    def chat_rows(self, n, rows=None):
        if rows is None:
            while len(self.chat_order) < n:
                self.chat_order = np.concatenate([self.chat_order, self.rng.permutation(len(self.chat))]).astype(np.int64)
            take, self.chat_order = self.chat_order[:n], self.chat_order[n:]
            rows = self.chat[torch.from_numpy(take).to(DEV)]
        ids, marked = (rows & (LOSS - 1)).long(), rows >= LOSS
        labels = torch.where(marked, ids, torch.full_like(ids, -100))
        last = torch.full_like(labels[:, :1], -100)
        return ids[:, :self.t], torch.cat([labels[:, 1:], last], 1)[:, :self.t]

    def batch(self, n, chat_share):
        k = round(n * chat_share)
        a = self.rows(n - k)
        if not k:
            return a
        b = self.chat_rows(k)
        return torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])


@torch.no_grad()
def evaluate(p, data, rounded, cos, sin, rows):
    """Mean loss (nats a token) on held-out books, articles and chat answers."""
    w, t, out = weights(p, rounded, DT, quick=False), data.t, {}
    sets = {k: (lambda v: (v[:-1], v[1:]))(v) for k, v in data.val.items()}
    for name, (x, y) in sets.items():
        n = min(rows, len(x) // t)
        sets[name] = x[:n * t].reshape(n, t).long(), y[:n * t].reshape(n, t).long()
    sets["chat"] = data.chat_rows(0, data.val_chat[:rows])
    for name, (x, y) in sets.items():
        total = count = 0
        for i in range(0, len(x), 32):
            h = trunk(w, x[i:i + 32], cos, sin, quick=False)
            n = (y[i:i + 32] >= 0).sum()
            total += head_loss(h, w["norm"], w["emb"], y[i:i + 32]) * n
            count += n
        out[name] = float(total / count)
    return out


@torch.no_grad()
def rounding_loss(p, data, cos, sin, rows=32):
    """KL divergence and top-1 agreement of the rounded weights against the unrounded ones, on held-out text."""
    x = torch.cat([v[:rows // 2 * data.t].reshape(-1, data.t).long() for v in data.val.values()])
    kl = same = n = 0.0
    for i in range(0, len(x), 8):
        lp = []
        for rounded in (False, True):
            w = weights(p, rounded, DT, quick=False)
            h = trunk(w, x[i:i + 8], cos, sin, quick=False)
            lp.append(F.log_softmax(F.linear(rms(h, w["norm"]), w["emb"]).float(), -1))
        kl += float((lp[0].exp() * (lp[0] - lp[1])).sum())
        same += float((lp[0].argmax(-1) == lp[1].argmax(-1)).sum())
        n += lp[0].shape[0] * lp[0].shape[1]
    return {"kl": kl / n, "top1": same / n}


@torch.no_grad()
def export(p, data, c, out, cos, sin, info):
    """Everything the exporter needs; values are those of the 4-bit file."""
    z, q = {}, {}
    for k in KINDS:
        val, codes, sc, m, d, dmin = kquant.round_q4k(torch, p[k].float())
        q[k] = val
        nib = codes.to(torch.uint8).reshape(-1, 2)
        z[k + "_q"] = (nib[:, 0] | nib[:, 1] << 4).cpu().numpy()
        z[k + "_sc"], z[k + "_m"] = sc.to(torch.uint8).cpu().numpy(), m.to(torch.uint8).cpu().numpy()
        z[k + "_d"], z[k + "_dmin"] = d.half().cpu().numpy(), dmin.half().cpu().numpy()
        z[k + "_shape"] = np.array(p[k].shape)
    np.savez(f"{out}/decoder_q4.npz", **z)
    emb = p["emb"].half()
    np.savez(f"{out}/decoder_f16.npz", emb=emb.cpu().numpy(),
             **{k: p[k].detach().float().cpu().numpy() for k in ("norm1", "norm2", "norm")})
    w = {k: q[k].unbind(0) for k in KINDS} | {k: p[k].unbind(0) for k in ("norm1", "norm2")}
    w |= {"emb": emb.float(), "norm": p["norm"]}
    ids = data.val["books"][1000:1048].long()[None]
    h = trunk(w, ids, cos, sin, quick=False)
    logits = F.linear(rms(h, w["norm"]), w["emb"])
    np.savez_compressed(f"{out}/decoder_logits.npz", ids=ids.cpu().numpy(), logits=logits[0].cpu().numpy())
    json.dump(info, open(f"{out}/decoder.json", "w"), indent=1)


def rate_at(x):
    """Warm up, hold, then down to 3 % along a line. x: progress in 0..1."""
    return min(1.0, x / 0.02 + 0.02) if x < 0.5 else max(0.03, 1 - 0.97 * (x - 0.5) / 0.5)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--data", required=True)
    a.add_argument("--out", required=True)
    a.add_argument("--seconds", type=float, default=290, help="from the program's start; measuring takes some 15 more")
    a.add_argument("--batch", type=int, default=128, help="rows of 1024 tokens in a step")
    a.add_argument("--steps", type=int, default=10**9)
    a.add_argument("--tiny", action="store_true", help="a few small layers, to check the code without a GPU")
    o = a.parse_args()
    c = dict(CFG, dim=256, layers=2, heads=4, kv_heads=2, ffn=256, context=64) if o.tiny else CFG
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    p = make_params(c, torch.Generator().manual_seed(SEED))
    cos, sin = angles(c)
    data, opt = Data(o.data, SEED, c["context"]), Optimizer(p, 0.02, 0.003, 0.08)
    info = {"config": c, "params": sum(t.numel() for t in p.values()), "batch tokens": o.batch * c["context"], "curve": []}
    print(f"{time.time() - START:.0f} s: {info['params'] / 1e6:.1f}M parameters, {len(data.train)} tokens, {DEV}", flush=True)

    def step(share, rounded, rate, update=True):
        x, y = data.batch(o.batch, share)
        w = weights(p, rounded, DT)
        loss = fast_loss(trunk(w, x, cos, sin, 0.1), w["norm"], w["emb"], y)
        loss.backward()
        if update:
            opt.step(rate, 0.95)
        return loss.detach()

    for rounded in (False, True):  # compile both ways before the clock of the schedule starts
        step(0.3, rounded, 0, update=False)
        for t in p.values():
            t.grad = None
    data.epochs = 0.0
    if DEV == "cuda":
        torch.cuda.synchronize()
    t0, n, next_eval, loss = time.time(), 0, 0.1, torch.zeros(())
    print(f"{t0 - START:.0f} s: compiled", flush=True)
    while n < o.steps:
        x = (time.time() - t0) / (o.seconds - (t0 - START)) if o.steps > 10**8 else n / o.steps
        if x >= 1:
            break
        loss = step(0 if x < 0.6 else 0.35 if x < 0.9 else 0.5, x >= 0.65, rate_at(x))
        n += 1
        if n % 5 == 0:
            float(loss)
        if x >= next_eval:
            val = evaluate(p, data, x >= 0.65, cos, sin, 4 if o.tiny else 48)
            info["curve"].append({"progress": round(x, 3), "step": n, "train": float(loss), **val})
            print(f"{time.time() - START:.0f} s: step {n} epoch {data.epochs:.1f} {info['curve'][-1]}", flush=True)
            next_eval += 0.1
    if DEV == "cuda":
        torch.cuda.synchronize()
    used = time.time() - t0
    info |= {"steps": n, "epochs of text": data.epochs, "seconds of training": used, "tokens": n * info["batch tokens"],
             "tokens a second": n * info["batch tokens"] / used, "device": torch.cuda.get_device_name() if DEV == "cuda" else "cpu"}
    if DEV == "cuda":
        info["peak memory GB"] = torch.cuda.max_memory_allocated() / 1e9
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    export(p, data, c, o.out, cos, sin, info)
    rows = 4 if o.tiny else 10**6
    info["held out, rounded"] = evaluate(p, data, True, cos, sin, rows)
    info["held out, unrounded"] = evaluate(p, data, False, cos, sin, rows)
    info["rounding against unrounded"] = rounding_loss(p, data, cos, sin, min(rows, 32))
    json.dump(info, open(f"{o.out}/decoder.json", "w"), indent=1)
    print(json.dumps({k: v for k, v in info.items() if k != "curve"}), f"{time.time() - START:.0f} s: done", flush=True)


if __name__ == "__main__":
    main()
