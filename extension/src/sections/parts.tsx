/** Small parts that the sections of the panel share. */

import * as React from 'react';

import { baseName, formatNumber, provenance } from '../format';
import type { Number } from '../records';

/** A section that can be folded; how it was left is remembered by the browser's own element while the page lives. */
export function Section(props: {
  title: string;
  count?: number;
  children: React.ReactNode;
}): JSX.Element {
  return (
    <details className="jp-aimass-Section" open>
      <summary>
        <h3>{props.title}</h3>
        {props.count ? (
          <span className="jp-aimass-Count">{props.count}</span>
        ) : null}
      </summary>
      <div className="jp-aimass-Section-body">{props.children}</div>
    </details>
  );
}

/** What is to be said where there is nothing to show, and why. */
export function Remark(props: {
  children: React.ReactNode;
  tone?: 'warn';
}): JSX.Element {
  const tone = props.tone ? ' jp-mod-warn' : '';
  return (
    <p
      className={`jp-aimass-Remark${tone}`}
      role={props.tone ? 'alert' : undefined}
    >
      {props.children}
    </p>
  );
}

/** A number, with where it comes from as a tooltip. */
export function Value(props: { of: Number | null | undefined }): JSX.Element {
  return <span title={provenance(props.of)}>{formatNumber(props.of)}</span>;
}

/** The end of a path, with all of it as a tooltip. */
export function PathName(props: { path: string }): JSX.Element {
  return (
    <span className="jp-aimass-Path" title={props.path}>
      {baseName(props.path)}
    </span>
  );
}

export function Button(props: {
  label: string;
  caption?: string;
  disabled?: boolean;
  quiet?: boolean;
  onClick: () => void;
}): JSX.Element {
  const quiet = props.quiet ? ' jp-mod-quiet' : '';
  return (
    <button
      type="button"
      className={`jp-aimass-Button${quiet}`}
      title={props.caption}
      disabled={props.disabled}
      onClick={props.onClick}
    >
      {props.label}
    </button>
  );
}
