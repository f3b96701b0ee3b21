// The page without a network: every file of build BUILD_ID is kept when it was loaded once.
const NAME = "autofit-BUILD_ID";

self.addEventListener("install", () => self.skipWaiting());

self.addEventListener("activate", (event) => {
  event.waitUntil((async () => {
    for (const name of await caches.keys()) if (name.startsWith("autofit-") && name !== NAME) await caches.delete(name);
    await self.clients.claim();
  })());
});

self.addEventListener("message", (event) => {
  if (event.data === "keep") event.waitUntil(keepAll());
});

async function keepAll() {
  const cache = await caches.open(NAME);
  const listed = await (await fetch("files.json", { cache: "no-cache" })).json();
  if (`autofit-${listed.build}` !== NAME) return; // a newer build: its own worker keeps it
  const names = ["./", "files.json", ...Object.keys(listed.files)];
  for (const name of names) if (!(await cache.match(name))) await cache.add(name);
}

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || url.origin !== self.location.origin || event.request.headers.has("Range")) return;
  event.respondWith((async () => {
    try {
      return await fetch(event.request);
    } catch (error) {
      const kept = await (await caches.open(NAME)).match(event.request, { ignoreSearch: true });
      if (kept) return kept;
      throw error;
    }
  })());
});
