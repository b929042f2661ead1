// The law and the cost of a query, as scaling/law.py and scaling/cost.py have them; the tests run both.
// `data` is what scaling/explorer.py embeds; `state` is {text, answer, question, budget, sizes, counts},
// the last two lists of booleans that say which models and token counts may be chosen.
"use strict";

const model = (() => {
  function lawError(data, params, n, v, text) {
    const t = data.tokens === "V" ? v : text + v;
    return params[0] * Math.pow(n, -params[1]) * Math.pow(t, -params[2]) + params[3];
  }

  // Whether such a size or such a T lies outside of what the law was fitted on; rounding aside.
  function extrapolates(data, n, v, text) {
    if (!data.reach) return false;
    const lacks = (x, [low, high]) => x < low * (1 - 1e-9) || x > high * (1 + 1e-9);
    return lacks(n, data.reach.params_b) || lacks(data.tokens === "V" ? v : text + v, data.reach.tokens);
  }

  // What share of its peaks an engine was measured to reach in one part, for a prompt of that length: straight in the
  // logarithms of both between the measured lengths, the nearest outside of them. 1 where none was measured.
  function reached(data, part, length) {
    if (!data.efficiency) return 1;
    const { lengths } = data.efficiency, shares = data.efficiency.shares[part], last = lengths.length - 1;
    if (length <= lengths[0]) return shares[0];
    if (length >= lengths[last]) return shares[last];
    const k = lengths.findIndex((each) => each >= length);
    const way = Math.log(length / lengths[k - 1]) / Math.log(lengths[k] / lengths[k - 1]);
    return Math.exp((1 - way) * Math.log(shares[k - 1]) + way * Math.log(shares[k]));
  }

  // FLOPs of one query, bytes once per batch, bytes per query, for every part.
  function work(data, state, i, v, j) {
    const llm = data.llms[i], q = state.text;
    if (!data.counted) return { prefill: { flops: 2e9 * llm.n * (q + v), shared: 0, own: 0 } };
    const length = q + v, steps = Math.max(state.answer - 1, 0), read = Math.min(state.question, q);
    const context = length + (steps + 1) / 2;
    const pass = (tokens, seen, logits) =>
      2 * (llm.layers * tokens + llm.output * logits) + llm.attention * tokens * seen;
    const all = llm.layer_bytes + data.bytes * llm.output;
    const adapter = llm.adapters[j], encoder = llm.query, asked = Math.min(read, encoder.most);
    return {
      tower: { flops: data.tower.flops, shared: data.tower.bytes, own: 0 },
      query: {
        flops: adapter.reads ? encoder.fixed + encoder.linear * asked + encoder.square * asked * asked : 0,
        shared: adapter.reads && read > 0 ? encoder.bytes : 0, own: adapter.reads ? encoder.own * asked : 0,
      },
      compressor: { flops: adapter.flops, shared: adapter.bytes, own: 0 },
      prefill: { flops: pass(length, length, 1), shared: all, own: llm.cache * length },
      decode: { flops: pass(steps, context, steps), shared: steps * all, own: llm.cache * steps * context },
    };
  }

  // For a prompt of that length, visual tokens included; `atPeaks` is what it were if nothing had been measured.
  function queryCost(data, parts, length, atPeaks = false) {
    const list = Object.entries(parts);
    if (data.kind === "flops") return list.reduce((sum, [, part]) => sum + part.flops, 0);
    const { flops, bandwidth } = data.machine, batch = data.batch;
    const seconds = list.reduce((sum, [name, part]) => {
      const least = Math.max(batch * part.flops / flops, (part.shared + batch * part.own) / bandwidth);
      return sum + (least && !atPeaks ? least / reached(data, name, length) : least);
    }, 0);
    return data.kind === "seconds" ? seconds : seconds / batch * data.usd;
  }

  function fits(data, state, i, v, j) {
    if (!data.machine) return true;
    const llm = data.llms[i], adapter = llm.adapters[j], context = state.text + v + state.answer;
    const weights = data.bytes * llm.tables + llm.layer_bytes + data.tower.bytes + adapter.bytes +
      (adapter.reads ? llm.query.memory : 0);
    return weights + data.batch * context * llm.cache <= data.machine.memory;
  }

  // Every choice that the state leaves open, by rising cost, with the error that the law predicts.
  function choices(data, state) {
    const found = [];
    data.llms.forEach((llm, i) => data.counts.forEach((v, j) => {
      if (!state.sizes[i] || !state.counts[j] || !fits(data, state, i, v, j)) return;
      const parts = work(data, state, i, v, j);
      found.push({ i, j, n: llm.n, v, parts, cost: queryCost(data, parts, state.text + v),
        error: lawError(data, data.law, llm.n, v, state.text) });
    }));
    return found.sort((a, b) => a.cost - b.cost || a.i - b.i || a.v - b.v);
  }

  // Of choices by rising cost, those that no cheaper one matches.
  function frontier(sorted) {
    let least = Infinity;
    return sorted.filter((each) => each.error < least && ((least = each.error), true));
  }

  // The best choice that a budget buys of choices by rising cost; null if it buys none.
  function best(sorted, budget, errorOf = (each) => each.error) {
    let found = null, least = Infinity;
    for (const each of sorted) {
      if (each.cost > budget * (1 + 1e-12)) break;
      const error = errorOf(each);
      if (error < least) [found, least] = [each, error];
    }
    return found;
  }

  // How often the bootstrap laws choose each choice, and the interval of the best one's error.
  function votes(data, state, sorted, chosen) {
    if (!data.samples || !chosen) return null;
    const count = new Map(), errors = [];
    for (const params of data.samples) {
      const errorOf = (each) => lawError(data, params, each.n, each.v, state.text);
      const pick = best(sorted, state.budget, errorOf);
      count.set(pick, (count.get(pick) || 0) + 1);
      errors.push(errorOf(chosen));
    }
    errors.sort((a, b) => a - b);
    const at = (share) => {
      const place = share * (errors.length - 1), low = Math.floor(place), high = Math.ceil(place);
      return errors[low] + (place - low) * (errors[high] - errors[low]);
    };
    const shares = [...count].map(([each, k]) => [each, k / errors.length]).sort((a, b) => b[1] - a[1]);
    return { shares, interval: [at(0.025), at(0.975)] };
  }

  return { lawError, extrapolates, work, queryCost, fits, choices, frontier, best, votes };
})();

if (typeof module !== "undefined") module.exports = model;
