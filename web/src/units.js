// Sizes and rates as the command line prints them (`autofit/domain/units.py`).

/** @type {Array<[string, number]>} */
const UNITS = [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]];

export function formatBytes(bytes) {
  const sign = bytes < 0 ? "-" : "";
  const size = Math.abs(bytes);
  for (const [name, unit] of UNITS) {
    if (size >= unit) {
      const value = size / unit;
      return `${sign}${value.toFixed(value >= 1000 ? 0 : value >= 100 ? 1 : 2)} ${name}`;
    }
  }
  return `${sign}${size} B`;
}

export const count = (number) => Math.round(number).toLocaleString("en-US");

export function formatRate(perSecond) {
  if (perSecond >= 20) return count(perSecond);
  return perSecond >= 0.1 ? perSecond.toFixed(1) : perSecond.toPrecision(1);
}

/** `16k`, `1M` where that is the exact count, as `--context` takes it. */
export function shortTokens(tokens) {
  if (tokens % 2 ** 20 === 0) return `${tokens / 2 ** 20}M`;
  return tokens % 1024 === 0 ? `${tokens / 1024}k` : String(tokens);
}

/** The count of `16k`; NaN of what is none. */
export function parseTokens(text) {
  const match = /^\s*(\d{1,12})\s*([kKmM]?)\s*$/.exec(text ?? "");
  return match ? Number(match[1]) * { "": 1, k: 1024, m: 2 ** 20 }[match[2].toLowerCase()] : NaN;
}
