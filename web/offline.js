// The page without a network: build BUILD_ID, kept as a whole once it was loaded, and served from there.
// A newer build is kept beside it, and takes over when no page of the older one is open.
const NAME = "autofit-BUILD_ID";

self.addEventListener("install", (event) => event.waitUntil(keepAll()));

self.addEventListener("activate", (event) => event.waitUntil((async () => {
  for (const name of await caches.keys()) if (name.startsWith("autofit-") && name !== NAME) await caches.delete(name);
  await self.clients.claim();
})()));

async function keepAll() {
  const listed = await (await fetch("files.json", { cache: "no-cache" })).json();
  if (`autofit-${listed.build}` !== NAME) throw new Error("the host has another build"); // whose own worker keeps it
  const cache = await caches.open(NAME);
  await cache.addAll(["./", "files.json", ...Object.keys(listed.files)].map((name) => new Request(name, { cache: "no-cache" })));
}

self.addEventListener("fetch", (event) => {
  const { method, url, headers } = event.request;
  if (method !== "GET" || new URL(url).origin !== self.location.origin || headers.has("Range")) return;
  event.respondWith((async () => {
    const kept = await (await caches.open(NAME)).match(event.request, { ignoreSearch: true });
    return kept ?? fetch(event.request);
  })());
});
