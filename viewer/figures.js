// What stands between the digits of a number.
const BETWEEN = ",.'\u00a0\u202f\u066c";
// --- figures, as the Python side writes them
const number = value => Math.round(value).toLocaleString("en-US");
const counted = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
function money(known, unpriced) {
  if (unpriced && !known) return "?";
  if (known < 0) return "−" + money(-known, unpriced);
  const places = known >= 1 || !known ? 2 : Math.min(9, 1 - Math.floor(Math.log10(known)));
  const digits = { minimumFractionDigits: places, maximumFractionDigits: places };
  const shown = known ? "$" + (known + TIE / 10 ** places).toLocaleString("en-US", digits) : "$0";
  return unpriced ? shown + " + ?" : shown;
}
function duration(ms) {
  if (ms < 999.5) return (ms + TIE).toFixed(ms >= 9.95 || ms < 0.05 ? 0 : 1) + " ms";
  if (ms < 59950) return (ms / 1000 + TIE).toFixed(1) + " s";
  const seconds = Math.round(ms / 1000), minutes = Math.floor(seconds / 60), two = n => String(n).padStart(2, "0");
  if (minutes < 60) return `${minutes} m ${two(seconds % 60)} s`;
  return `${number(Math.floor(minutes / 60))} h ${two(minutes % 60)} m`;
}
