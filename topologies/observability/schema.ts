// What a dashboard of ours is, by Grafana's own types: the dashboard, and the options and fields of each kind of panel in it.
import type { Dashboard, DataQuery, DataSourceRef, FieldConfig, Panel, RowPanel } from '@grafana/schema';
import type * as Heatmap from '@grafana/schema/dist/types/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen.d.ts';
import type * as Stat from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.d.ts';
import type * as States from '@grafana/schema/dist/types/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen.d.ts';
import type * as Table from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen.d.ts';
import type * as Lines from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.d.ts';

/** A type as it is written in JSON: members of an enumeration by their values. */
export type Wire<T> = T extends string
  ? `${T}`
  : T extends number | boolean | null | undefined
    ? T
    : T extends (infer Item)[]
      ? Wire<Item>[]
      : T extends object
        ? { [Key in keyof T]: Wire<T[Key]> }
        : T;

/** Required in the end by Grafana, and given by itself where they are missing. */
type Given<T> = T extends object ? Partial<T> : T;

/** What Grafana's data source for Prometheus asks; its types are not in this package. */
type Query = Wire<Omit<DataQuery, 'datasource'>> & {
  datasource: DataSourceRef;
  editorMode: 'code';
  expr: string;
  format: 'time_series' | 'table' | 'heatmap';
  instant: boolean;
  legendFormat: string;
  range: boolean;
};

type PanelOf<Kind extends string, Options, Custom> = Wire<
  Omit<Panel, 'type' | 'options' | 'fieldConfig' | 'targets' | 'datasource'>
> & {
  type: Kind;
  title: string;
  description: string;
  datasource: DataSourceRef;
  options: Wire<Given<Options>>;
  fieldConfig: {
    defaults: Wire<Omit<FieldConfig, 'custom' | 'thresholds'>> & {
      custom?: Wire<Given<Custom>>;
      // The first step begins at nothing, which JSON can only say as null.
      thresholds?: { mode: 'absolute'; steps: { color: string; value: number | null }[] };
    };
    overrides: [];
  };
  targets: Query[];
};

export type Board = Wire<Omit<Dashboard, 'panels' | 'editable'>> & {
  uid: string;
  title: string;
  editable: false;
  panels: (
    | Wire<RowPanel>
    | PanelOf<'stat', Stat.Options, never>
    | PanelOf<'timeseries', Lines.Options, Lines.FieldConfig>
    | PanelOf<'state-timeline', States.Options, States.FieldConfig>
    | PanelOf<'heatmap', Heatmap.Options, Heatmap.FieldConfig>
    | PanelOf<'table', Table.Options, Table.FieldConfig>
  )[];
};
