/** One object that was found. */
export interface Detection {
  category_id: number;
  category: string;
  /** x, y, width, height in pixels of the upright image. */
  bbox: [number, number, number, number];
  /** 0 to 1. */
  score: number;
  /** Pixels of the mask; of the box where no mask was asked for. */
  area: number;
  /** False where the category had no masks in training: its mask is transferred. */
  mask_supervised: boolean;
  /** Where the category's masks come from, of servers that say so. */
  mask_source?: "masks" | "some_masks" | "taught" | "boxes";
  /** Absent where no masks were asked for. */
  segmentation?: Segmentation;
  /** x, y, score of each one after the other, counted in pixels from 0. */
  keypoints?: number[];
}

export interface RunLengths {
  /** Height and width. */
  size: [number, number];
  /** COCO's compressed text, or run lengths down the columns, background first. */
  counts: string | ArrayLike<number>;
}

export interface PngMask {
  /** A PNG file of 1 bit a pixel in base64, white inside. */
  png: string;
  /** x, y, width, height of the picture in the image. */
  bbox: [number, number, number, number];
}

/** x, y, x, y, ... of each outline. */
export type Polygons = number[][];

export type Segmentation = RunLengths | Polygons | PngMask;

/** What one model found in one image, the best first. */
export interface Answer {
  model: { name: string; version: string };
  image: { height: number; width: number };
  detections: Detection[];
}

export interface Target {
  /** Default http://127.0.0.1:8080; "" is the folder of the page itself. */
  server?: string;
  /** Default maskx. */
  model?: string;
  /** The model's default version where empty. */
  version?: string;
}

export interface Options extends Target {
  /** 0 to 1; the model's own where absent. */
  scoreThreshold?: number;
  /** 1 to 1000, the best first. */
  maxDetections?: number;
  /** Names or ids; a text has commas between them. */
  categories?: string | (string | number)[];
  maskFormat?: "rle" | "polygon" | "png" | "none";
  /** Sent as `Authorization: Bearer <token>`. */
  token?: string;
  /** Ends the request; `predict` then rejects with the signal's own reason. */
  signal?: AbortSignal;
}

/** The part of an image that a mask lies in: `pixels` are 1 inside and 0 outside, row by row from (`left`, `top`). */
export interface Window {
  left: number;
  top: number;
  width: number;
  height: number;
  pixels: Uint8Array;
}

/**
 * `type` and `code` are the server's. "Unreachable" with code 0: nobody answered. "Unreadable": what came is not of the
 * form that is expected.
 */
export class MaskxError extends Error {
  constructor(type: string, code: number, message: string);
  readonly name: "MaskxError";
  readonly type: string;
  readonly code: number;
}

/** What the model finds in one image file. Rejects with a MaskxError. */
export function predict(image: Blob | ArrayBuffer | Uint8Array, options?: Options): Promise<Answer>;

/** The address that `predict` sends images to. */
export function predictionUrl(target?: Target): string;

/** The headers that `predict` sends. */
export function headersOf(options: Options): Record<string, string>;

/** Run lengths down the columns, background first. Throws a MaskxError: text of another form. */
export function runLengths(counts: string | ArrayLike<number>): number[];

/** The window of a segmentation of any form; null where there is none, or no pixel. Rejects with a MaskxError. */
export function maskWindow(
  segmentation: Segmentation | null | undefined,
  height: number,
  width: number,
): Promise<Window | null>;

/** The same of run lengths, at once. */
export function runWindow(counts: string | ArrayLike<number>, height: number, width: number): Window | null;

/** The same of polygons, at once. */
export function polygonWindow(polygons: Polygons, height: number, width: number): Window | null;

/** The same of a PNG. */
export function pngWindow(mask: PngMask, height: number, width: number): Promise<Window | null>;

/** The mask of the whole image, 1 inside and 0 outside, row by row; all 0 for null. */
export function bitmap(window: Window | null, height: number, width: number): Uint8Array;

/** The window as an ImageData of its own size, to be put at (`left`, `top`); in browsers alone. */
export function imageData(window: Window, color: [red: number, green: number, blue: number, alpha: number]): ImageData;
