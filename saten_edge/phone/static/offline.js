// Service worker: the page opens without the computer. ONNX Runtime never changes under its address and
// is taken from the store first; the page itself is fetched anew whenever the computer can be reached.

const STORE = "saten-page-1";
const PAGE = [
  "/", "/style.css", "/manifest.webmanifest", "/icon.svg", "/icon-180.png", "/icon-512.png",
  ...["app", "chart", "device", "download", "engine", "measure", "prices", "server", "sha256", "tensors", "worker"].map(
    (name) => `/${name}.js`,
  ),
];

addEventListener("install", (event) => {
  event.waitUntil(caches.open(STORE).then((store) => store.addAll(PAGE)));
  skipWaiting();
});

addEventListener("activate", (event) => event.waitUntil(clients.claim()));

addEventListener("fetch", (event) => {
  const { pathname, origin } = new URL(event.request.url);
  if (origin !== location.origin || event.request.method !== "GET" || pathname.startsWith("/api/")) return;
  event.respondWith(pathname.startsWith("/ort/") ? fromStore(event.request) : fromNetwork(event.request));
});

async function fromStore(request) {
  return (await caches.match(request)) ?? keep(request, await fetch(request));
}

async function fromNetwork(request) {
  try {
    return await keep(request, await fetch(request));
  } catch (error) {
    const kept = await caches.match(request);
    if (kept) return kept;
    throw error;
  }
}

async function keep(request, response) {
  if (response.ok) await (await caches.open(STORE)).put(request, response.clone());
  return response;
}
