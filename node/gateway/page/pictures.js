// Pictures to show a model: from files, from the clipboard, from the camera; made small enough to send.
// Rule: nothing larger than what a model looks at leaves the browser, and nothing but pixels: places and names in a photo's file stay here.

import { button, dialog, el, fill, problem, spinner, toast } from "./dom.js";

const LONGEST_SIDE = 1_536; // pixels; models look at 224 to 1,536
const MOST_BYTES = 1_800_000; // of one picture: eight of them fit into a request
const MOST_PICTURES = 8;
const QUALITIES = [0.9, 0.8, 0.65, 0.5];

/** A picture as a data: URL. Throws if it is none. */
export async function shrunk(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new Error(`${blob.name || "this file"} is not a picture that this browser can read`);
  }
  try {
    return pictured(bitmap, bitmap.width, bitmap.height);
  } finally {
    bitmap.close();
  }
}

/** What a canvas can draw, as a data: URL. */
function pictured(source, width, height) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  const canvas = el("canvas", { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff"; // JPEG knows no transparency
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(source, 0, 0, canvas.width, canvas.height);
  for (const quality of QUALITIES) {
    const url = canvas.toDataURL("image/jpeg", quality);
    if (url.length < MOST_BYTES) return url;
  }
  throw new Error("this picture stays too large, however small it is made");
}

/** The pictures of the next message. `changed()` after each change. */
export function pictureTray(changed) {
  let urls = [];
  const element = el("div.tray", { role: "list", "aria-label": "Pictures to send" });

  function show() {
    element.hidden = !urls.length;
    fill(element, urls.map((url, index) => el("div.thumb", { role: "listitem" },
      el("img", { src: url, alt: `Picture ${index + 1}` }),
      button("×", () => set(urls.filter((_, other) => other !== index)), { kind: "bare small", label: `Remove picture ${index + 1}` }))));
  }

  function set(next) {
    urls = next;
    show();
    changed();
  }

  async function add(files) {
    for (const file of files) {
      if (urls.length >= MOST_PICTURES) return toast(`A message shows at most ${MOST_PICTURES} pictures.`, "bad");
      try {
        const url = await shrunk(file);
        set([...urls, url].slice(0, MOST_PICTURES));
      } catch (error) {
        toast(error.message, "bad");
      }
    }
    return undefined;
  }

  show();
  return {
    element,
    add,
    addUrl: (url) => set([...urls, url].slice(0, MOST_PICTURES)),
    clear: () => set([]),
    get urls() {
      return urls;
    },
  };
}

/** The pictures of a paste or drop. */
export function picturesIn(transfer) {
  return [...(transfer?.files || [])].filter((file) => file.type.startsWith("image/"));
}

/** Take a picture with the camera; `taken(url)`. */
export async function webcam(taken) {
  const place = el("div.stack", {}, spinner("waiting for the camera"));
  let stream = null;
  let closed = false;
  const close = dialog("Take a picture", place);
  const box = place.closest("dialog");
  const end = () => stream?.getTracks().forEach((track) => track.stop());
  box.addEventListener("close", () => {
    closed = true;
    end();
  });
  try {
    if (!navigator.mediaDevices) throw new DOMException("", "SecurityError");
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: LONGEST_SIDE } } });
  } catch (error) {
    fill(place, problem(cameraTrouble(error)));
    return;
  }
  if (closed) {
    end();
    return;
  }
  const video = el("video.preview", { autoplay: true, playsinline: true, "aria-label": "What the camera sees" });
  video.muted = true;
  video.srcObject = stream;
  const shoot = button("Take it", () => {
    taken(pictured(video, video.videoWidth, video.videoHeight));
    close();
  }, { kind: "primary", disabled: true });
  video.addEventListener("playing", () => {
    shoot.disabled = false;
    shoot.focus();
  });
  fill(place, video, el("div.row.end", {}, button("Cancel", close), shoot));
}

function cameraTrouble(error) {
  const said = {
    NotAllowedError: "The browser may not use the camera: allow it in the address bar, and try again.",
    NotFoundError: "There is no camera here.",
    NotReadableError: "Another program uses the camera; close it and try again.",
    SecurityError: "A browser gives the camera only to pages of this machine or over https: open the page on the machine where the node runs.",
  };
  return said[error.name] || `The camera cannot be used: ${error.message || error.name}`;
}
