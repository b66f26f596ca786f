/** A small chart of the last minutes, in the theme's colours. */

import * as React from 'react';

import { IPoint, pieces, Series } from '../series';

const HEIGHT = 34;
const WIDTH = 100;

export interface IChart {
  label: string;
  /** What stands under the label in small print. */
  caption?: string;
  series: Series;
  /** A second line in the same scale, such as what is sent. */
  other?: Series;
  /** The top of the scale; the highest value seen where there is none. */
  limit?: number | null;
  format: (value: number) => string;
  /** The newest value, with its limit. */
  text: string;
  tooltip?: string;
  /** Seconds without a reading after which the line is broken. */
  longestGap: number;
  /** Seconds that the chart spans. */
  window: number;
  describe: (highest: string) => string;
}

export function Chart(props: IChart): JSX.Element {
  const [at, setAt] = React.useState<number | null>(null);
  const points = props.series.points;
  const end = points.length ? points[points.length - 1].time : 0;
  const highest = Math.max(props.series.highest, props.other?.highest ?? 0);
  const top = props.limit || highest * 1.15 || 1;
  const x = (time: number) => WIDTH * (1 - (end - time) / props.window);
  const y = (value: number) => HEIGHT - (HEIGHT - 2) * Math.min(1, value / top);
  const near = at === null ? null : nearest(points, end - (1 - at) * props.window);
  const move = (event: React.MouseEvent<SVGSVGElement>) => {
    const box = event.currentTarget.getBoundingClientRect();
    setAt((event.clientX - box.left) / box.width);
  };
  return (
    <div className="jp-aimass-Chart" title={props.tooltip}>
      <div className="jp-aimass-Chart-head">
        <span className="jp-aimass-Chart-label">{props.label}</span>
        <output aria-live="off">
          {near ? `${props.format(near.value)}, ${ago(end - near.time)}` : props.text}
        </output>
      </div>
      {props.caption ? (
        <div className="jp-aimass-Chart-caption">{props.caption}</div>
      ) : null}
      <svg
        role="img"
        aria-label={`${props.label}: ${props.text}. ${props.describe(props.format(highest))}`}
        viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
        preserveAspectRatio="none"
        onMouseMove={move}
        onMouseLeave={() => setAt(null)}
      >
        <line className="jp-aimass-Chart-grid" x1="0" x2={WIDTH} y1={HEIGHT / 2} y2={HEIGHT / 2} />
        {pieces(points, props.longestGap).map((piece, i) => (
          <React.Fragment key={i}>
            <polygon
              className="jp-aimass-Chart-area"
              points={`${x(piece[0].time)},${HEIGHT} ${line(piece, x, y)} ${x(piece[piece.length - 1].time)},${HEIGHT}`}
            />
            <polyline className="jp-aimass-Chart-line" points={line(piece, x, y)} />
          </React.Fragment>
        ))}
        {props.other
          ? pieces(props.other.points, props.longestGap).map((piece, i) => (
              <polyline key={i} className="jp-aimass-Chart-line jp-mod-other" points={line(piece, x, y)} />
            ))
          : null}
        {near ? (
          <line className="jp-aimass-Chart-cursor" x1={x(near.time)} x2={x(near.time)} y1="0" y2={HEIGHT} />
        ) : null}
      </svg>
    </div>
  );
}

function line(
  piece: IPoint[],
  x: (time: number) => number,
  y: (value: number) => number
): string {
  return piece.map(p => `${x(p.time).toFixed(2)},${y(p.value).toFixed(2)}`).join(' ');
}

function nearest(points: ReadonlyArray<IPoint>, time: number): IPoint | null {
  return points.reduce<IPoint | null>(
    (best, p) =>
      !best || Math.abs(p.time - time) < Math.abs(best.time - time) ? p : best,
    null
  );
}

function ago(seconds: number): string {
  return seconds < 0.5 ? '0 s' : `−${Math.round(seconds)} s`;
}
