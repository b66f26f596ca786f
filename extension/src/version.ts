/** The version of this half, as it was built. */

declare const require: (path: string) => { version: string };

export const version = require('../package.json').version;
