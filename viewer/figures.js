// --- figures, as the Python side writes them
const number = value => Math.round(value).toLocaleString("en-US");
function money(known, unpriced) {
  if (unpriced && !known) return "?";
  const cents = { minimumFractionDigits: 2, maximumFractionDigits: 2 };
  let shown = "$0";
  if (known >= 100) shown = "$" + (known + TIE).toLocaleString("en-US", cents);
  else if (known) shown = known < 0.00005 ? "<$0.0001" : "$" + (known + TIE).toFixed(4);
  return unpriced ? shown + " + ?" : shown;
}
function duration(ms) {
  if (ms < 999.5) return (ms + TIE).toFixed(ms >= 9.95 || ms < 0.05 ? 0 : 1) + " ms";
  if (ms < 59950) return (ms / 1000 + TIE).toFixed(1) + " s";
  const seconds = Math.round(ms / 1000), minutes = Math.floor(seconds / 60), two = n => String(n).padStart(2, "0");
  if (minutes < 60) return `${minutes} m ${two(seconds % 60)} s`;
  return `${number(Math.floor(minutes / 60))} h ${two(minutes % 60)} m`;
}

