// A photograph by the camera: phones have an application of their own for it, which a file input opens; elsewhere the page
// shows the camera's picture until it is taken.

/** Offers whichever of the two there is; hands what is taken to `add`, as files. */
export function camera(add) {
  const at = (id) => document.getElementById(id);
  if (matchMedia("(pointer: coarse)").matches) {
    at("capture").hidden = false;
    return;
  }
  if (!navigator.mediaDevices?.getUserMedia) return; // no camera for pages that came without TLS from another machine
  const [dialog, video] = [at("viewfinder"), at("video")];
  at("camera").hidden = false;
  at("camera").addEventListener("click", async () => {
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } } });
      dialog.showModal();
    } catch (error) {
      at("status").textContent = `The camera cannot be used: ${error.message}`;
    }
  });
  at("take").addEventListener("click", async () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    dialog.close();
    canvas.toBlob((blob) => blob && add([new File([blob], "photo.jpg", { type: blob.type })]), "image/jpeg", 0.95);
  });
  dialog.addEventListener("close", () => {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
  });
}
