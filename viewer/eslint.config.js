// For the scripts of the page joined into one, as viewer/build.py does.
const browser = `window document location history navigator getComputedStyle devicePixelRatio innerHeight innerWidth
  matchMedia CSS Node NodeFilter Range Highlight URL URLSearchParams Blob Response DecompressionStream DOMParser atob
  fetch localStorage setTimeout clearTimeout setInterval requestAnimationFrame cancelAnimationFrame addEventListener
  scrollBy scrollTo performance getSelection TextDecoder Intl IntersectionObserver`;

module.exports = [{
  rules: {
    "no-undef": 2, "no-unused-vars": [2, { ignoreRestSiblings: true }], "eqeqeq": 2,
    "prefer-const": 2, "no-var": 2, "no-eval": 2,
    "no-implied-eval": 2, "no-redeclare": 2, "complexity": [2, 18], "max-lines-per-function": [2, 40],
    "max-len": [2, 120],
    "no-restricted-properties": [2, ...["innerHTML", "outerHTML", "insertAdjacentHTML"].map(
      property => ({ property, message: "text reaches the page as text nodes only" }))],
  },
  languageOptions: { sourceType: "script",
    globals: Object.fromEntries(browser.split(/\s+/).map(g => [g, "readonly"])) },
}];
