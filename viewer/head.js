if (window.DecompressionStream) document.documentElement.className = "js";
try { document.documentElement.dataset.theme = localStorage.getItem("rlm-theme") || ""; } catch {}
