// Writes src/records.ts from the published JSON Schemas; with --check it only says whether the file still fits them.
import { readFile, writeFile } from 'node:fs/promises';
import { compile } from 'json-schema-to-typescript';

const RECORDS = ['live', 'kernel_state', 'history'];
const schemas = new URL('../../aimass_lab/schema_files/', import.meta.url);
const target = new URL('../src/records.ts', import.meta.url);

const definitions = {};
for (const name of RECORDS) {
  const schema = JSON.parse(
    await readFile(new URL(`${name}.schema.json`, schemas), 'utf8')
  );
  Object.assign(definitions, schema.$defs);
}
const refs = Object.keys(definitions).map(name => ({ $ref: `#/$defs/${name}` }));
const text = await compile(
  { $defs: definitions, anyOf: refs },
  'AnyOfThem',
  {
    bannerComment:
      '/* The records that travel to the browser. Made by `jlpm records` from the published schemas: do not edit. */',
    style: { singleQuote: true, trailingComma: 'none' },
    additionalProperties: false,
    ignoreMinAndMaxItems: true
  }
);
if (process.argv.includes('--check')) {
  const there = await readFile(target, 'utf8').catch(() => '');
  if (there !== text) {
    console.error('src/records.ts does not fit the published schemas: run `jlpm records`');
    process.exit(1);
  }
} else {
  await writeFile(target, text);
}
