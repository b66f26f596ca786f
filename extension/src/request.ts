/** Talks to the Jupyter server's half of this extension. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

export const NAMESPACE = 'aimass-lab';

/** The server answered with an error of ours, or could not be reached. */
export class RequestError extends Error {
  constructor(
    message: string,
    readonly help: string | null,
    readonly status: number
  ) {
    super(message);
  }
}

async function request(
  settings: ServerConnection.ISettings,
  path: string,
  init: RequestInit = {}
): Promise<Response> {
  const url = URLExt.join(settings.baseUrl, NAMESPACE, path);
  let response: Response;
  try {
    response = await ServerConnection.makeRequest(url, init, settings);
  } catch (error) {
    throw new RequestError(String(error), null, 0);
  }
  if (!response.ok) {
    const text = await response.text();
    let body: { message?: string; help?: string | null } = {};
    try {
      body = JSON.parse(text);
    } catch {
      body = { message: text };
    }
    const message =
      response.status === 404 && !body.help && !body.message
        ? 'not found'
        : (body.message ?? response.statusText);
    throw new RequestError(message, body.help ?? null, response.status);
  }
  return response;
}

/** A record. */
export async function requestRecord<T>(
  settings: ServerConnection.ISettings,
  path: string
): Promise<T> {
  return (await request(settings, path)).json();
}

/** A record as HTML: no script, everything escaped by the Python half. */
export async function requestPage(
  settings: ServerConnection.ISettings,
  path: string
): Promise<string> {
  return (await request(settings, path)).text();
}

/** Stop the bundle that a process serves. */
export async function stopService(
  settings: ServerConnection.ISettings,
  pid: number
): Promise<void> {
  await request(settings, `services/${pid}`, { method: 'DELETE' });
}
