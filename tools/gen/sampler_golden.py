#!/usr/bin/env python3
"""Writes tests/data/sampler_golden.inc: what samplers should do, computed from their published definitions.

Every step is written the slow, obvious way over a full distribution (sort everything, sum everything), without looking at
how src/sched computes it. Sources: Meister et al. 2022 (locally typical), p-e-w's DRY and XTC (text-generation-webui pull
requests 5677 and 6335), Basu et al. 2021 (mirostat; surprise after truncation, as llama.cpp has it), entropy-based dynamic
temperature (llama.cpp's server). Python's standard library only; the same output every time.
usage: python3 tools/gen/sampler_golden.py > tests/data/sampler_golden.inc
"""
import math
import random
import struct

V = 32


def f32(x):
    return struct.unpack('f', struct.pack('f', x))[0]


def softmax(logit, t=1.0):
    top = max(logit.values())
    e = {i: math.exp((x - top) / t) for i, x in logit.items()}
    z = sum(e.values())
    return {i: x / z for i, x in e.items()}


def best_first(p):
    return sorted(p, key=lambda i: (-p[i], i))


def until(order, p, mass):
    """The shortest beginning of order that holds at least mass."""
    kept, held = [], 0.0
    for i in order:
        kept.append(i)
        held += p[i]
        if held >= mass:
            break
    return kept


def dry(logit, ids, is_break, c):
    seq = ids if c['dry_last_n'] < 0 else ids[max(0, len(ids) - c['dry_last_n']):]
    brk = is_break[len(ids) - len(seq):]
    if len(seq) < 2 or brk[-1]:
        return logit
    longest = {}
    for i in range(len(seq) - 1):
        if seq[i] != seq[-1] or brk[i + 1]:
            continue
        n = 1
        while n < 50 and i - n >= 0 and seq[i - n] == seq[-1 - n] and not brk[-1 - n]:
            n += 1
        longest[seq[i + 1]] = max(longest.get(seq[i + 1], 0), n)
    out = dict(logit)
    for t, n in longest.items():
        if n >= c['dry_allowed_length']:
            out[t] -= c['dry_multiplier'] * c['dry_base'] ** (n - c['dry_allowed_length'])
    return out


def distribution(logit, ids, is_break, c):
    """p[token] of the next token."""
    if c['dry_multiplier'] > 0:
        logit = dry(logit, ids, is_break, c)
    live = dict(logit)
    if c['top_k'] > 0:
        live = {i: live[i] for i in best_first(live)[:c['top_k']]}
    if 0 < c['typical_p'] < 1:
        p = softmax(live)
        h = -sum(x * math.log(x) for x in p.values() if x > 0)
        order = sorted(p, key=lambda i: (abs(-math.log(p[i]) - h), i))
        live = {i: live[i] for i in until(order, p, c['typical_p'])}
    if c['top_p'] < 1:
        p = softmax(live)
        live = {i: live[i] for i in until(best_first(p), p, c['top_p'])}
    if c['min_p'] > 0:
        p = softmax(live)
        live = {i: live[i] for i in live if p[i] >= c['min_p'] * max(p.values())}

    def heated(live):
        t = c['temperature']
        if c['dynatemp_range'] > 0 and len(live) > 1:
            p = softmax(live)
            h = -sum(x * math.log(x) for x in p.values() if x > 0) / math.log(len(live))
            lo, hi = max(0.0, t - c['dynatemp_range']), t + c['dynatemp_range']
            t = lo + (hi - lo) * h ** c['dynatemp_exponent']
        return softmax(live, t)

    out = {i: 0.0 for i in range(V)}
    for i, x in heated(live).items():
        out[i] += (1 - c['xtc_probability']) * x
    p = softmax(live)
    over = [i for i in best_first(p) if p[i] >= c['xtc_threshold']]
    cut = {i: live[i] for i in live if i not in over[:-1]} if len(over) > 1 and c['xtc_threshold'] <= 0.5 else live
    for i, x in heated(cut).items():
        out[i] += c['xtc_probability'] * x
    return [out[i] for i in range(V)]


def mirostat(logit, version, mu, tau, eta, t):
    """For every token that may come: mu after it; None: it may not come."""
    p = softmax(logit, t)
    order = best_first(p)
    if version == 1:
        m = min(100, len(order))
        num = den = 0.0
        for i in range(m - 1):
            ti = math.log((i + 2) / (i + 1))
            num += ti * math.log(p[order[i]] / p[order[i + 1]])
            den += ti * ti
        s = num / den
        eps = s - 1
        k = (eps * 2 ** mu / (1 - len(order) ** -eps)) ** (1 / s)
        kept = order[:max(1, int(k))]
    else:
        kept = [i for i in order if -math.log2(p[i]) <= mu] or order[:1]
    z = sum(p[i] for i in kept)
    return [mu - eta * (-math.log2(p[i] / z) - tau) if i in kept else None for i in range(V)]


OFF = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, dynatemp_range=0.0, dynatemp_exponent=1.0,
           xtc_probability=0.0, xtc_threshold=0.1, dry_multiplier=0.0, dry_base=1.75, dry_allowed_length=2, dry_last_n=-1)
CASES = [
    dict(typical_p=0.5), dict(typical_p=0.9, temperature=0.7), dict(typical_p=0.2, top_k=20, top_p=0.9),
    dict(typical_p=0.6, min_p=0.1), dict(xtc_probability=1.0, xtc_threshold=0.08), dict(xtc_probability=0.4, top_k=12),
    dict(xtc_probability=0.7, xtc_threshold=0.05, temperature=1.6), dict(xtc_probability=1.0, xtc_threshold=0.6),
    dict(dynatemp_range=0.5), dict(dynatemp_range=0.9, dynatemp_exponent=2.0, temperature=1.2, top_p=0.95),
    dict(temperature=0.3, dynatemp_range=0.8, min_p=0.02), dict(dry_multiplier=0.8), dict(dry_multiplier=1.5, dry_base=1.2),
    dict(dry_multiplier=0.9, dry_allowed_length=4), dict(dry_multiplier=2.0, dry_last_n=9), dict(dry_multiplier=0.7, top_k=10),
    dict(dry_multiplier=1.0, typical_p=0.8, top_p=0.9, min_p=0.01, xtc_probability=0.5, dynatemp_range=0.3, temperature=0.9),
]


def cut(values, fmt='%.9g'):
    return '{' + ', '.join('-1' if v is None else fmt % v for v in values) + '}'


def main():
    r = random.Random(2026)
    print('/* Made by tools/gen/sampler_golden.py; see there. */')
    print('static const golden_case g_case[] = {')
    for n, over in enumerate(CASES):
        c = {k: (f32(v) if isinstance(v, float) else v) for k, v in dict(OFF, **over).items()}
        logit = [f32(r.gauss(0, 2)) for _ in range(V)]
        motif = [r.randrange(V) for _ in range(5)]
        ids = []
        while len(ids) < 40:
            ids += motif[: 2 + r.randrange(4)] if r.random() < 0.6 else [r.randrange(V)]
        ids = ids[:40] + motif[:4]
        brk = [1 if n % 3 == 0 and r.random() < 0.08 else 0 for _ in ids]
        brk[-1] = 0
        p = distribution(dict(enumerate(logit)), ids, brk, c)
        print('    {{' + ', '.join('.%s = %.9g' % kv for kv in c.items()) + ', .repeat_penalty = 1},')
        print('     %s,\n     %d, %s,\n     %s,\n     %s},' % (cut(logit), len(ids), cut(ids, '%d'), cut(brk, '%d'), cut(p, '%.8f')))
    print('};\nstatic const golden_mirostat g_mirostat[] = {')
    for version in (1, 2):
        for mu, tau, eta, t in ((10, 5, 0.1, 1), (3, 2, 0.25, 1), (1, 3, 0.1, 0.8), (4.5, 4, 1, 1.5), (0.2, 1, 0.5, 1)):
            tau, eta, t = f32(tau), f32(eta), f32(t)
            logit = [f32(r.gauss(0, 2)) for _ in range(V)]
            after = mirostat(dict(enumerate(logit)), version, mu, tau, eta, t)
            print('    {%d, %.9g, %.9g, %.9g, %.9g,\n     %s,\n     {%s}},' %
                  (version, mu, tau, eta, t, cut(logit), ', '.join('NAN' if x is None else '%.9g' % x for x in after)))
    print('};')


main()
