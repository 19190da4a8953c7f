{{- define "stepgate.name" -}}
{{- if contains "stepgate" .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-stepgate" .Release.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "stepgate.selector" -}}
app.kubernetes.io/name: stepgate
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "stepgate.labels" -}}
{{ include "stepgate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "stepgate.policies" -}}
{{- if .Values.policies }}
{{- toYaml .Values.policies }}
{{- else if not (or .Values.config.bundles .Values.config.discovery) -}}
policy.rego: |
{{ .Files.Get "example.rego" | indent 2 }}
{{- end }}
{{- end }}

{{- define "stepgate.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "stepgate.account" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "stepgate.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "stepgate.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /*
The number of replicas. With autoscaling it is the one that runs, so that no upgrade takes pods away from the autoscaler, and `minReplicas`
at the first installation. Where autoscaling was just turned off, it stays until the next upgrade.
*/}}
{{- define "stepgate.replicas" -}}
{{- $name := include "stepgate.name" . }}
{{- $running := dig "spec" "replicas" 0 (lookup "apps/v1" "Deployment" .Release.Namespace $name | default dict) | int }}
{{- $scaler := lookup "autoscaling/v2" "HorizontalPodAutoscaler" .Release.Namespace $name }}
{{- if not .Values.autoscaling.enabled -}}
{{ if $scaler }}{{ max $running (int .Values.replicas) }}{{ else }}{{ .Values.replicas }}{{ end }}
{{- else if .Values.autoscaling.setReplicas -}}
{{ max $running (int .Values.autoscaling.minReplicas) }}
{{- end }}
{{- end }}
