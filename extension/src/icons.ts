/** The extension's own icon: a gauge, drawn in the colours of the theme. */

import { LabIcon } from '@jupyterlab/ui-components';

export const aimassIcon = new LabIcon({
  name: 'aimass-lab:gauge',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" height="16" viewBox="0 0 24 24">
  <g class="jp-icon3 jp-icon-selectable" fill="#616161">
    <path d="M12 4a10 10 0 0 0-9.5 13.1c.2.5.7.9 1.3.9h16.400c.6 0 1.100-.4 1.300-.9A10 10 0 0 0 12 4zm0 2a8 8 0 0 1 7.900 9.300l-.1.700H4.200l-.1-.7A8 8 0 0 1 12 6z"/>
    <path d="M16.600 8.700a.6.6 0 0 1 .8.8l-3.700 4.700a2.100 2.100 0 1 1-2-2z"/>
    <rect x="5.500" y="12.200" width="2" height="1.400"/><rect x="11.300" y="7.200" width="1.400" height="2"/><rect x="7.100" y="8.700" width="1.600" height="1.600" transform="rotate(45 7.900 9.500)"/>
  </g></svg>`
});
